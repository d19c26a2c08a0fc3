package pelton;

import java.util.ArrayDeque;
import java.util.Collections;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import org.apache.flink.api.java.tuple.Tuple2;
import org.apache.flink.streaming.api.functions.async.ResultFuture;
import org.apache.flink.streaming.api.functions.async.RichAsyncFunction;

/** A service that takes a fifth to all of the longest call, always the same for a row, and keeps no thread busy. */
final class Calls extends RichAsyncFunction<Tuple2<Long, byte[]>, Long> {
    private static final ScheduledExecutorService TIMER =
            Executors.newSingleThreadScheduledExecutor(
                    work -> {
                        Thread thread = new Thread(work, "calls");
                        thread.setDaemon(true);
                        return thread;
                    });

    private record Call(long id, ResultFuture<Long> result) {}

    private final Options options;
    private transient ArrayDeque<Call> waiting;
    private transient int running;

    Calls(Options options) {
        this.options = options;
    }

    /** In milliseconds; the same hash as that of Pelton's job. */
    static long takes(long id, long longest) {
        double share = 0.2 + 0.8 * ((id * 0x9e37_79b9_7f4a_7c15L) >>> 40) / (double) (1L << 24);
        return (long) (longest * share);
    }

    @Override
    public synchronized void asyncInvoke(Tuple2<Long, byte[]> row, ResultFuture<Long> result) {
        if (waiting == null) {
            waiting = new ArrayDeque<>();
        }
        waiting.add(new Call(row.f0, result));
        begin();
    }

    private synchronized void begin() {
        while (running < options.share(options.inFlight()) && !waiting.isEmpty()) {
            Call call = waiting.remove();
            running++;
            Notes.executed.incrementAndGet();
            Notes.running.incrementAndGet();
            Notes.add(options.path(Notes.EXECUTED), call.id());
            TIMER.schedule(() -> end(call), takes(call.id(), options.call()), TimeUnit.MILLISECONDS);
        }
    }

    private synchronized void end(Call call) {
        running--;
        Notes.running.decrementAndGet();
        call.result().complete(Collections.singleton(call.id() * 3));
        begin();
    }
}
