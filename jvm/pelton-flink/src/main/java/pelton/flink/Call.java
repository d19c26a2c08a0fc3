package pelton.flink;

import java.io.Serializable;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.apache.flink.api.common.functions.Function;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.java.tuple.Tuple3;
import org.apache.flink.api.java.tuple.Tuple5;
import org.apache.flink.streaming.api.datastream.AsyncDataStream;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.datastream.SingleOutputStreamOperator;
import org.apache.flink.util.OutputTag;

/** A call of a method with each row of a stream: what goes in, what comes out, and how. */
public final class Call<T> {
    /** Rows in hand, unless it is said: enough for 300,000 a second at 25 ms each. */
    private static final int LIMIT = 8192;

    private final ServiceSource source;
    private final DataStream<T> stream;
    private final String method;
    private final ServiceHandle.Delivery delivery;
    private final List<String> columns = new ArrayList<>();
    private final List<Argument<T>> arguments = new ArrayList<>();
    private String name;
    private int limit = LIMIT;
    private Duration timeout;
    private OutputTag<FailedRow<T>> errors;
    private Integer parallelism;

    Call(ServiceSource source, DataStream<T> stream, String method, ServiceHandle.Delivery delivery) {
        this.source = source;
        this.stream = stream;
        this.method = method;
        this.delivery = delivery;
        this.name = source.descriptor().id() + "-" + method;
    }

    /** What a row has for one column of the method: a boolean, a number, String, byte[], an array of numbers, a list of these, or null. */
    public interface Argument<T> extends Function, Serializable {
        Object of(T row) throws Exception;
    }

    /** Makes what leaves of a row and one answer to it. */
    public interface Join<T, R> extends Function, Serializable {
        R join(T row, Answer answer) throws Exception;
    }

    /** A row whose request ended with an error. */
    public record FailedRow<T>(T row, String kind, String fate, String message) implements Serializable {}

    /** Gives the method's column of this name. */
    public Call<T> with(String column, Argument<T> argument) {
        columns.add(column);
        arguments.add(argument);
        return this;
    }

    /** What the call is called, and its state found by; else after service and method. Unique among the calls of a service. */
    public Call<T> named(String name) {
        this.name = name;
        return this;
    }

    /** How many rows one subtask may have in hand; beyond it the stream waits. */
    public Call<T> limit(int rows) {
        if (rows < 1) {
            throw new IllegalArgumentException("a limit of " + rows + " rows lets none through; use at least 1");
        }
        this.limit = rows;
        return this;
    }

    /** How long a row may take with all its attempts; else as the declaration says. */
    public Call<T> timeout(Duration timeout) {
        this.timeout = timeout;
        return this;
    }

    /** Rows whose requests fail go here, and do not fail the job. */
    public Call<T> errors(OutputTag<FailedRow<T>> tag) {
        this.errors = tag;
        return this;
    }

    public Call<T> parallelism(int parallelism) {
        this.parallelism = parallelism;
        return this;
    }

    /** The stream of what {@code join} makes of rows and their answers, of which a streaming method gives any number. */
    public <R> SingleOutputStreamOperator<R> returns(TypeInformation<R> type, Join<T, R> join) {
        if (columns.isEmpty()) {
            throw new IllegalStateException("call " + name + " gives no columns; say with(..) what the method gets");
        }
        if (!source.called(name)) {
            throw new IllegalStateException("two calls are named " + name + "; give one another name with named(..)");
        }
        CallSite site = new CallSite(source.descriptor(), source.run(), name, method, columns, limit, timeout == null ? null : timeout.toMillis());
        int parallel = parallelism != null ? parallelism : stream.getExecutionEnvironment().getParallelism();
        TypeInformation<Tuple3<Long, Long, T>> numbered = Types.TUPLE(Types.LONG, Types.LONG, stream.getType());
        DataStream<Tuple3<Long, Long, T>> requests =
                stream.map(new AssignIds<T>()).returns(numbered).name(name + "-number").uid(name + "-number").setParallelism(parallel);
        CallFunction<T> function = new CallFunction<>(site, arguments);
        // Its capacity is twice what the client lets in, and never what holds a barrier back.
        int capacity = Math.multiplyExact(2, limit);
        SingleOutputStreamOperator<Tuple5<Long, Long, Long, T, byte[]>> ended = delivery == ServiceHandle.Delivery.ORDERED
                ? AsyncDataStream.orderedWait(requests, function, 0, TimeUnit.MILLISECONDS, capacity)
                : AsyncDataStream.unorderedWait(requests, function, 0, TimeUnit.MILLISECONDS, capacity);
        ended.returns(Types.TUPLE(Types.LONG, Types.LONG, Types.LONG, stream.getType(), Types.PRIMITIVE_ARRAY(Types.BYTE))).name(name).uid(name).setParallelism(parallel);
        SingleOutputStreamOperator<R> joined =
                ended.process(new Deliver<T, R>(join, errors)).returns(type).name(name + "-deliver").uid(name + "-deliver").setParallelism(parallel);
        joined.getSideOutput(EndSink.NOTHING).sinkTo(new EndSink(site)).name(name + "-end").uid(name + "-end").setParallelism(parallel);
        return joined;
    }
}
