package pelton.flink;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;

/** The functions of the native library, which is in this jar. They throw a {@link RuntimeException} with the error's text. */
final class Native {
    static {
        load();
    }

    private Native() {}

    /** The private folder of this user for what runs on this machine. */
    static native byte[] folder();

    /** The names of the service and its pool, and the number of instances. */
    static native byte[] check(byte[] order);

    /** A place in a pool, or 0 if it has no agent. */
    static native long hold(byte[] order);

    /** What the agent says: its kind and its words, or nothing. Throws when the agent is gone. */
    static native byte[] hear(long hold, long waitMillis);

    /** Gives a place back, for good or to the lease. */
    static native void release(long hold, boolean forGood);

    /** Lets the agent tell all who hold the pool. Whether there is an agent. */
    static native boolean tell(byte[] order, byte[] what);

    /** A client, or 0 if the service is not ready yet. */
    static native long connect(byte[] settings);

    static native byte[] output(long client);

    static native void submit(long client, byte[] block, int length);

    static native byte[] take(long client, long waitMillis, int mostBytes);

    static native void acknowledge(long client, byte[] ids);

    static native void close(long client);

    /** Each class loader has a copy of the library: a file is loaded once, by one of them. */
    private static void load() {
        try {
            Path copy = Files.createTempFile("pelton-", ".so");
            try (InputStream library = resource("libpelton_jvm.so")) {
                Files.copy(library, copy, java.nio.file.StandardCopyOption.REPLACE_EXISTING);
                System.load(copy.toString());
            } finally {
                // What is loaded stays loaded.
                Files.delete(copy);
            }
        } catch (IOException e) {
            throw new UncheckedIOException("loading the native library of Pelton", e);
        }
    }

    static InputStream resource(String name) throws IOException {
        String architecture = System.getProperty("os.arch");
        String path = "/pelton/native/linux-" + architecture + "/" + name;
        InputStream found = Native.class.getResourceAsStream(path);
        if (found == null) {
            throw new IOException("this jar has no " + path + "; it was built for another machine than linux-" + architecture);
        }
        return found;
    }

    static byte[] utf8(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }
}
