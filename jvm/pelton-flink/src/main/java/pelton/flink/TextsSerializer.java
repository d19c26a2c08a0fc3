package pelton.flink;

import java.io.IOException;
import java.util.Set;
import java.util.TreeSet;
import org.apache.flink.core.io.SimpleVersionedSerializer;

final class TextsSerializer implements SimpleVersionedSerializer<Set<String>> {
    @Override
    public int getVersion() {
        return 1;
    }

    @Override
    public byte[] serialize(Set<String> texts) {
        Values.Writer out = new Values.Writer();
        texts.forEach(out::put);
        return out.copy();
    }

    @Override
    public Set<String> deserialize(int version, byte[] bytes) throws IOException {
        if (version != getVersion()) {
            throw new IOException("the state of a service is of version " + version + ", and this is of version " + getVersion());
        }
        return new TreeSet<>(Values.texts(bytes));
    }
}
