package example;

import java.io.IOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import org.apache.flink.api.common.serialization.SimpleStringEncoder;
import org.apache.flink.connector.file.sink.FileSink;
import org.apache.flink.streaming.api.functions.sink.filesystem.rollingpolicies.OnCheckpointRollingPolicy;
import pelton.flink.ServiceDescriptor;

/** {@code --NAME VALUE}, as these jobs are given. */
final class Arguments {
    private final Map<String, String> values = new HashMap<>();

    Arguments(String[] words) {
        for (int i = 0; i + 1 < words.length; i += 2) {
            values.put(words[i].substring(2), words[i + 1]);
        }
    }

    String get(String name) {
        String value = values.get(name);
        if (value == null) {
            throw new IllegalArgumentException("--" + name + " is missing");
        }
        return value;
    }

    boolean has(String name) {
        return values.containsKey(name);
    }

    int get(String name, int otherwise) {
        return values.containsKey(name) ? Integer.parseInt(values.get(name)) : otherwise;
    }

    /** The service: its declaration, and what starts its instances. */
    ServiceDescriptor service() throws IOException {
        Path declaration = Path.of(get("declaration"));
        ServiceDescriptor service = ServiceDescriptor.fromFile(values.getOrDefault("service", declaration.getFileName().toString()), declaration);
        service = service.lease(Duration.ofSeconds(get("lease", 30)));
        return values.containsKey("program") ? service.program(get("program").split(" ")) : service;
    }

    FileSink<String> output() {
        org.apache.flink.core.fs.Path folder = new org.apache.flink.core.fs.Path("file://" + get("output"));
        // What a checkpoint covers is there to be read.
        return FileSink.forRowFormat(folder, new SimpleStringEncoder<String>())
                .withRollingPolicy(OnCheckpointRollingPolicy.build())
                .build();
    }
}
