package pelton.flink;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.flink.api.common.state.CheckpointListener;
import org.apache.flink.api.java.tuple.Tuple5;
import org.apache.flink.runtime.state.FunctionInitializationContext;
import org.apache.flink.runtime.state.FunctionSnapshotContext;
import org.apache.flink.streaming.api.checkpoint.CheckpointedFunction;
import org.apache.flink.streaming.api.functions.ProcessFunction;
import org.apache.flink.util.Collector;
import org.apache.flink.util.OutputTag;

/**
 * Joins rows and answers, in the same task as the call: what passes here has left the call's state, and once a checkpoint covers that, the
 * instances may forget it.
 */
final class Deliver<T, R> extends ProcessFunction<Tuple5<Long, Long, Long, T, byte[]>, R> implements CheckpointedFunction, CheckpointListener {
    private static final long serialVersionUID = 1;
    /** What is forgotten at once where there are no checkpoints. */
    private static final int BLOCK = 1024;

    /** Requests of one client that have left. */
    private record Left(long checkpoint, Map<Long, Values.Writer> byClient) {}

    private final Call.Join<T, R> join;
    private final OutputTag<Call.FailedRow<T>> errors;
    private transient Map<Long, List<String>> names;
    private transient Map<Long, Values.Writer> left;
    private transient int count;
    private transient boolean checkpointed;
    private transient Deque<Left> covered;

    Deliver(Call.Join<T, R> join, OutputTag<Call.FailedRow<T>> errors) {
        this.join = join;
        this.errors = errors;
    }

    @Override
    public void initializeState(FunctionInitializationContext context) {
        names = new HashMap<>();
        left = new HashMap<>();
        count = 0;
        checkpointed = context.isRestored();
        covered = new ArrayDeque<>();
    }

    @Override
    public void processElement(Tuple5<Long, Long, Long, T, byte[]> ended, Context context, Collector<R> out) throws Exception {
        Values.Reader answer = new Values.Reader(ended.f4);
        int rows = answer.readInt();
        if (rows < 0) {
            failed(ended.f3, (String) answer.read(), (String) answer.read(), (String) answer.read(), context);
        } else {
            List<String> columns = names.computeIfAbsent(ended.f0, client -> Values.texts(Native.output(client)));
            for (int row = 0; row < rows; row++) {
                Object[] values = new Object[columns.size()];
                for (int i = 0; i < values.length; i++) {
                    values[i] = answer.read();
                }
                out.collect(join.join(ended.f3, new Answer(columns, values)));
            }
        }
        left(ended.f0, ended.f1, ended.f2);
    }

    private void failed(T row, String kind, String fate, String message, Context context) {
        if (errors == null) {
            throw new RpcException(kind, fate, message);
        }
        context.output(errors, new Call.FailedRow<>(row, kind, fate, message));
    }

    private void left(long client, long group, long sequence) {
        Values.Writer ids = left.computeIfAbsent(client, c -> new Values.Writer());
        if (ids.size() == 0) {
            ids.putInt(0);
        }
        ids.putLong(group);
        ids.putLong(sequence);
        // Nobody asks again for what no checkpoint has.
        if (++count >= BLOCK && !checkpointed) {
            forget(left);
            left = new HashMap<>();
            count = 0;
        }
    }

    private static void forget(Map<Long, Values.Writer> left) {
        left.forEach((client, ids) -> {
            ids.setInt(0, (ids.size() - Integer.BYTES) / (2 * Long.BYTES));
            try {
                Native.acknowledge(client, ids.copy());
            } catch (RuntimeException closed) {
                // With the client's task; what it asked for is forgotten by its age.
            }
        });
    }

    @Override
    public void snapshotState(FunctionSnapshotContext context) {
        checkpointed = true;
        covered.add(new Left(context.getCheckpointId(), left));
        left = new HashMap<>();
        count = 0;
    }

    @Override
    public void notifyCheckpointComplete(long checkpoint) {
        while (!covered.isEmpty() && covered.peek().checkpoint() <= checkpoint) {
            forget(covered.poll().byClient());
        }
    }
}
