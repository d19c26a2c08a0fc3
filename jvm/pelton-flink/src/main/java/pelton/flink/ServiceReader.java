package pelton.flink;

import java.io.IOException;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import org.apache.flink.api.connector.source.ReaderOutput;
import org.apache.flink.api.connector.source.SourceReader;
import org.apache.flink.api.connector.source.SourceReaderContext;
import org.apache.flink.core.io.InputStatus;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Holds one instance of a service on this machine, by a place in the pool of its agent. All of it happens in a thread of its own: the task is
 * running while a model warms up, and checkpoints pass.
 */
final class ServiceReader implements SourceReader<Long, NoSplit> {
    private static final Logger LOG = LoggerFactory.getLogger(ServiceReader.class);
    private static final long HEAR_MILLIS = 200;
    private static final long AGENT_MILLIS = 30_000;
    private static final long KNOCK_MILLIS = 20;

    private final byte[] order;
    private final String run;
    private final String service;
    private final SourceReaderContext context;
    private final CompletableFuture<Void> available = new CompletableFuture<>();
    private final Thread keeper;
    private volatile boolean closed;
    private volatile boolean ended;
    private volatile RuntimeException failure;

    ServiceReader(ServiceDescriptor descriptor, String run, SourceReaderContext context) {
        this.order = descriptor.order();
        this.service = descriptor.id();
        this.run = run;
        this.context = context;
        this.keeper = new Thread(this::keep, "pelton-service-" + service);
        keeper.setDaemon(true);
        keeper.setContextClassLoader(ServiceReader.class.getClassLoader());
    }

    @Override
    public void start() {
        keeper.start();
    }

    private void keep() {
        try {
            while (!closed) {
                hold(place());
            }
        } catch (InterruptedException e) {
            // The task ends.
        } catch (IOException | RuntimeException e) {
            failure = new IllegalStateException("service " + service + ": " + e.getMessage(), e);
            available.complete(null);
        }
    }

    /** A place in the pool, whose agent is adopted or started. */
    private long place() throws IOException, InterruptedException {
        long place = Native.hold(order);
        if (place != 0) {
            LOG.info("service {}: its agent is there, and goes on", service);
            return place;
        }
        Agent.start(order);
        for (long waited = 0; place == 0 && !closed; waited += KNOCK_MILLIS) {
            if (waited > AGENT_MILLIS) {
                throw new IOException("its agent did not begin within " + AGENT_MILLIS + " ms; see pelton-agent.log in " + Agent.logs());
            }
            Thread.sleep(KNOCK_MILLIS);
            place = Native.hold(order);
        }
        LOG.info("service {}: its agent was started", service);
        return place;
    }

    private void hold(long place) throws IOException {
        try {
            while (!closed) {
                List<String> said;
                try {
                    said = Values.texts(Native.hear(place, HEAR_MILLIS));
                } catch (RuntimeException gone) {
                    LOG.warn("service {}: {}; another one takes its instances over", service, gone.getMessage());
                    return;
                }
                if (said.size() == 2) {
                    heard(said.get(0), said.get(1));
                }
            }
        } finally {
            if (place != 0) {
                Native.release(place, ended);
            }
        }
    }

    private void heard(String kind, String words) throws IOException {
        switch (kind) {
            case "failed":
                throw new IOException(words);
            case "state":
                LOG.info("service {}: {}", service, words);
                break;
            case "told":
                CallEnded told = CallEnded.parse(words);
                if (told.run().equals(run)) {
                    context.sendSourceEventToCoordinator(told);
                }
                break;
            default:
                LOG.warn("service {}: its agent says {}, which is not known here", service, kind);
        }
    }

    @Override
    public InputStatus pollNext(ReaderOutput<Long> output) {
        if (failure != null) {
            throw failure;
        }
        return ended ? InputStatus.END_OF_INPUT : InputStatus.NOTHING_AVAILABLE;
    }

    @Override
    public CompletableFuture<Void> isAvailable() {
        return available;
    }

    @Override
    public void notifyNoMoreSplits() {
        ended = true;
        available.complete(null);
    }

    @Override
    public List<NoSplit> snapshotState(long checkpointId) {
        return List.of();
    }

    @Override
    public void addSplits(List<NoSplit> splits) {}

    @Override
    public void close() {
        closed = true;
        try {
            keeper.join(10 * HEAR_MILLIS);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
        keeper.interrupt();
    }
}
