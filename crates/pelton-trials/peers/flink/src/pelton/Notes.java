package pelton;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;

/** What happened in this process, whatever task it happened in; and, a line each, in files that outlive it. */
final class Notes {
    static final String EXECUTED = "executed";
    static final String ANSWERED = "answered";
    static final String RESTORED = "restored";

    static final AtomicInteger executed = new AtomicInteger();
    static final AtomicInteger running = new AtomicInteger();
    static final AtomicInteger answered = new AtomicInteger();
    /** Nanoseconds; 0 if it has not happened. */
    static final AtomicLong failed = new AtomicLong();
    static final AtomicLong answeredAfterFailure = new AtomicLong();

    private Notes() {}

    static synchronized void add(Path file, Object what) {
        try {
            Files.writeString(file, what + "\n", StandardOpenOption.CREATE, StandardOpenOption.APPEND);
        } catch (IOException e) {
            throw new IllegalStateException("writing " + file, e);
        }
    }
}
