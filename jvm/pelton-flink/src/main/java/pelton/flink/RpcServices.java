package pelton.flink;

import java.util.List;
import java.util.UUID;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.streaming.api.datastream.DataStreamSource;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink;

/** Puts services into Flink jobs. */
public final class RpcServices {
    private RpcServices() {}

    /**
     * Adds the vertex of a service to the job: as many subtasks as its declaration has {@code instances}, in a slot sharing group and
     * pipelined regions of their own, so that neither fails with the job's data plane.
     *
     * @throws RuntimeException with what is wrong with the declaration
     */
    public static ServiceHandle add(StreamExecutionEnvironment env, ServiceDescriptor descriptor) {
        List<String> checked = Values.texts(Native.check(descriptor.order()));
        int instances = Integer.parseInt(checked.get(2));
        String name = "rpc-service-" + descriptor.id();
        ServiceSource source = new ServiceSource(descriptor, UUID.randomUUID().toString());
        DataStreamSource<Long> vertex = env.fromSource(source, WatermarkStrategy.noWatermarks(), name, Types.LONG);
        vertex.setParallelism(instances).uid(name).slotSharingGroup(name);
        // A source without a sink is left out of the graph.
        vertex.sinkTo(new DiscardingSink<>()).name(name + "-end").setParallelism(instances).uid(name + "-end").slotSharingGroup(name);
        return new ServiceHandle(source);
    }
}
