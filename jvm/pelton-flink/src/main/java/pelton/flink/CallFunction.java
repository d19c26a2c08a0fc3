package pelton.flink;

import java.util.Collections;
import java.util.List;
import java.util.UUID;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.state.ListState;
import org.apache.flink.api.common.state.ListStateDescriptor;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.java.tuple.Tuple3;
import org.apache.flink.api.java.tuple.Tuple5;
import org.apache.flink.runtime.state.FunctionInitializationContext;
import org.apache.flink.runtime.state.FunctionSnapshotContext;
import org.apache.flink.streaming.api.checkpoint.CheckpointedFunction;
import org.apache.flink.streaming.api.functions.async.ResultFuture;
import org.apache.flink.streaming.api.functions.async.RichAsyncFunction;

/**
 * Hands rows to the client, and what became of them back to Flink's asynchronous operator, which keeps them, with their ids, in its state.
 *
 * <p>When the client has its limit in hand, each further row waits for a moment and is taken all the same, up to the operator's capacity of
 * twice the limit: an operator that is full holds barriers back for as long as its calls take.
 */
final class CallFunction<T> extends RichAsyncFunction<Tuple3<Long, Long, T>, Tuple5<Long, Long, Long, T, byte[]>> implements CheckpointedFunction {
    private static final long serialVersionUID = 1;
    /** What a row beyond the limit waits: as long as a barrier behind it may have to. */
    private static final long WAIT_MILLIS = 50;

    private final CallSite site;
    private final List<Call.Argument<T>> arguments;
    private transient ListState<String> kept;
    private transient String scope;
    private transient CallClient client;

    CallFunction(CallSite site, List<Call.Argument<T>> arguments) {
        this.site = site;
        this.arguments = List.copyOf(arguments);
    }

    /** Whose requests these are: drawn at the first start, and the same for all that goes on from its checkpoints and savepoints. */
    @Override
    public void initializeState(FunctionInitializationContext context) throws Exception {
        kept = context.getOperatorStateStore().getUnionListState(new ListStateDescriptor<>("scope", Types.STRING));
        scope = null;
        for (String known : kept.get()) {
            scope = scope == null || known.compareTo(scope) < 0 ? known : scope;
        }
        if (scope == null) {
            scope = UUID.randomUUID().toString();
        }
    }

    @Override
    public void snapshotState(FunctionSnapshotContext context) throws Exception {
        kept.update(List.of(scope));
    }

    @Override
    public void open(OpenContext context) {
        int subtask = getRuntimeContext().getTaskInfo().getIndexOfThisSubtask();
        client = new CallClient(site.settings(scope, subtask, System.currentTimeMillis()), arguments.size(), "pelton-" + site.name() + "-" + subtask);
        getRuntimeContext().getMetricGroup().gauge("rowsInHand", () -> client == null ? 0 : client.inHand());
    }

    @Override
    public void asyncInvoke(Tuple3<Long, Long, T> request, ResultFuture<Tuple5<Long, Long, Long, T, byte[]>> result) throws Exception {
        client.await(site.limit(), WAIT_MILLIS);
        Object[] values = new Object[arguments.size()];
        for (int i = 0; i < values.length; i++) {
            values[i] = arguments.get(i).of(request.f2);
        }
        client.submit(request.f0, request.f1, values, new CallClient.Receiver() {
            @Override
            public void ended(long number, byte[] answer) {
                result.complete(Collections.singleton(Tuple5.of(number, request.f0, request.f1, request.f2, answer)));
            }

            @Override
            public void failed(Throwable why) {
                result.completeExceptionally(why);
            }
        });
    }

    @Override
    public void close() throws Exception {
        if (client != null) {
            client.close();
        }
    }
}
