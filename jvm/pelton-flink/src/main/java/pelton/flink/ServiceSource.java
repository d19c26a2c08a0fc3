package pelton.flink;

import java.util.Set;
import java.util.TreeSet;
import org.apache.flink.api.connector.source.Boundedness;
import org.apache.flink.api.connector.source.Source;
import org.apache.flink.api.connector.source.SourceReader;
import org.apache.flink.api.connector.source.SourceReaderContext;
import org.apache.flink.api.connector.source.SplitEnumerator;
import org.apache.flink.api.connector.source.SplitEnumeratorContext;
import org.apache.flink.core.io.SimpleVersionedSerializer;

/**
 * The vertex of a service (FLIP-582: {@code RpcOperator}): as a source that emits nothing. Each subtask holds one instance on its machine; the
 * enumerator hears when all calls have ended, and lets the vertex end.
 */
final class ServiceSource implements Source<Long, NoSplit, Set<String>> {
    private static final long serialVersionUID = 1;

    private final ServiceDescriptor descriptor;
    /** Tells this submission of the job from others that use the same instances. */
    private final String run;
    /** The names of the calls. Grows while the job is put together, before this is serialized. */
    private final TreeSet<String> calls = new TreeSet<>();

    ServiceSource(ServiceDescriptor descriptor, String run) {
        this.descriptor = descriptor;
        this.run = run;
    }

    ServiceDescriptor descriptor() {
        return descriptor;
    }

    String run() {
        return run;
    }

    /** Whether the name is new. */
    boolean called(String name) {
        return calls.add(name);
    }

    /** With calls it ends when they do; without, it serves others until it is cancelled. */
    @Override
    public Boundedness getBoundedness() {
        return calls.isEmpty() ? Boundedness.CONTINUOUS_UNBOUNDED : Boundedness.BOUNDED;
    }

    @Override
    public SourceReader<Long, NoSplit> createReader(SourceReaderContext context) {
        return new ServiceReader(descriptor, run, context);
    }

    @Override
    public SplitEnumerator<NoSplit, Set<String>> createEnumerator(SplitEnumeratorContext<NoSplit> context) {
        return new ServiceEnumerator(context, calls, Set.of());
    }

    @Override
    public SplitEnumerator<NoSplit, Set<String>> restoreEnumerator(SplitEnumeratorContext<NoSplit> context, Set<String> ended) {
        return new ServiceEnumerator(context, calls, ended);
    }

    @Override
    public SimpleVersionedSerializer<NoSplit> getSplitSerializer() {
        return new NoSplit.Serializer();
    }

    @Override
    public SimpleVersionedSerializer<Set<String>> getEnumeratorCheckpointSerializer() {
        return new TextsSerializer();
    }
}
