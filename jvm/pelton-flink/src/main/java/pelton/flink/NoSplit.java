package pelton.flink;

import java.io.IOException;
import org.apache.flink.api.connector.source.SourceSplit;
import org.apache.flink.core.io.SimpleVersionedSerializer;

/** A service has nothing to read: there is no split. */
final class NoSplit implements SourceSplit {
    private NoSplit() {}

    @Override
    public String splitId() {
        return "none";
    }

    static final class Serializer implements SimpleVersionedSerializer<NoSplit> {
        @Override
        public int getVersion() {
            return 1;
        }

        @Override
        public byte[] serialize(NoSplit split) {
            return new byte[0];
        }

        @Override
        public NoSplit deserialize(int version, byte[] bytes) throws IOException {
            throw new IOException("a service has no splits");
        }
    }
}
