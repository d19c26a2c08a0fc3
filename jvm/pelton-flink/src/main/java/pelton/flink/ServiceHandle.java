package pelton.flink;

import org.apache.flink.streaming.api.datastream.DataStream;

/** A service of a job, to be called (FLIP-582: {@code RosClient}). */
public final class ServiceHandle {
    private final ServiceSource source;

    ServiceHandle(ServiceSource source) {
        this.source = source;
    }

    /** Which answers leave first. */
    public enum Delivery {
        /** In the order of the stream. */
        ORDERED,
        /** As they come, between two watermarks. */
        UNORDERED
    }

    /** Calls a method with each row of a stream. What is left to say is said with the {@link Call}. */
    public <T> Call<T> call(DataStream<T> stream, String method, Delivery delivery) {
        return new Call<>(source, stream, method, delivery);
    }
}
