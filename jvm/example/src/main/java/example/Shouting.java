package example;

import java.time.Duration;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.connector.source.util.ratelimit.RateLimiterStrategy;
import org.apache.flink.connector.datagen.source.DataGeneratorSource;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.util.OutputTag;
import pelton.flink.Call.FailedRow;
import pelton.flink.RpcServices;
import pelton.flink.ServiceHandle;
import pelton.flink.ServiceHandle.Delivery;

/** Numbers become lines of {@code number text}, in which the service {@code shout} says them aloud; those that it fails go to a second output. */
public final class Shouting {
    private static final OutputTag<FailedRow<Long>> FAILED = new OutputTag<>("failed") {};

    public static void main(String[] words) throws Exception {
        Arguments arguments = new Arguments(words);
        StreamExecutionEnvironment env = StreamExecutionEnvironment.getExecutionEnvironment();
        env.setParallelism(arguments.get("parallelism", 1));
        ServiceHandle shout = RpcServices.add(env, arguments.service());

        DataGeneratorSource<Long> source = new DataGeneratorSource<>(
                n -> n, arguments.get("rows", 1000), RateLimiterStrategy.perSecond(arguments.get("rate", 1000)), Types.LONG);
        DataStream<Long> numbers = env.fromSource(source, WatermarkStrategy.noWatermarks(), "numbers").uid("numbers").rebalance();
        if (arguments.has("fails-at")) {
            numbers = numbers.map(new FailsOnce(arguments.get("fails-at", 0), arguments.get("fails-once")));
        }
        var aloud = shout.call(numbers, "shout", Delivery.UNORDERED)
                .with("text", n -> "number " + n)
                .timeout(Duration.ofMinutes(10))
                .limit(arguments.get("limit", 8192))
                .errors(FAILED)
                .returns(Types.STRING, (n, answer) -> n + " " + answer.get("loud"));
        aloud.sinkTo(arguments.output()).uid("output");
        aloud.getSideOutput(FAILED).map(failed -> failed.row() + " failed: " + failed.message()).returns(Types.STRING).sinkTo(arguments.output()).uid("failed");
        env.execute("shouting");
    }
}
