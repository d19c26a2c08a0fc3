package pelton.flink;

import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.IntStream;
import org.apache.flink.api.connector.source.SourceEvent;
import org.apache.flink.api.connector.source.SplitEnumerator;
import org.apache.flink.api.connector.source.SplitEnumeratorContext;

/** Knows which calls of a service have ended, and lets its subtasks end behind the last. */
final class ServiceEnumerator implements SplitEnumerator<NoSplit, Set<String>> {
    private final SplitEnumeratorContext<NoSplit> context;
    private final Set<String> calls;
    /** Of each call, the subtasks that have ended; and the calls of which all have. */
    private final Set<String> ended;

    ServiceEnumerator(SplitEnumeratorContext<NoSplit> context, Set<String> calls, Set<String> ended) {
        this.context = context;
        this.calls = Set.copyOf(calls);
        this.ended = new TreeSet<>(ended);
    }

    @Override
    public void start() {}

    @Override
    public void handleSplitRequest(int subtask, String host) {}

    @Override
    public void addSplitsBack(List<NoSplit> splits, int subtask) {}

    @Override
    public void addReader(int subtask) {
        if (allEnded()) {
            context.signalNoMoreSplits(subtask);
        }
    }

    @Override
    public void handleSourceEvent(int subtask, SourceEvent event) {
        if (event instanceof CallEnded told && calls.contains(told.call()) && !ended.contains(told.call())) {
            ended.add(told.call() + "/" + told.subtask());
            boolean all = IntStream.range(0, told.subtasks()).allMatch(i -> ended.contains(told.call() + "/" + i));
            if (all) {
                ended.add(told.call());
            }
            if (allEnded()) {
                context.registeredReaders().keySet().forEach(context::signalNoMoreSplits);
            }
        }
    }

    private boolean allEnded() {
        return !calls.isEmpty() && ended.containsAll(calls);
    }

    @Override
    public Set<String> snapshotState(long checkpointId) {
        return new TreeSet<>(ended);
    }

    @Override
    public void close() {}
}
