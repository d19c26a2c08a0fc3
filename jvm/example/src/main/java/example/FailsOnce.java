package example;

import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.apache.flink.api.common.functions.MapFunction;

/** Lets all pass, but fails at one number, the first time that it comes: to see what a failure of a job's own code does to its services. */
final class FailsOnce implements MapFunction<Long, Long> {
    private static final long serialVersionUID = 1;

    private final long at;
    /** Made when it has failed. */
    private final String marker;

    FailsOnce(long at, String marker) {
        this.at = at;
        this.marker = marker;
    }

    @Override
    public Long map(Long n) throws Exception {
        if (n == at) {
            try {
                Files.createFile(Path.of(marker));
            } catch (FileAlreadyExistsException e) {
                return n;
            }
            throw new IllegalStateException("fails at " + at + ", once, as it was told");
        }
        return n;
    }
}
