package pelton;

import java.io.Serializable;
import java.nio.file.Path;

/** What the command line says: `--name value`, and `--name` alone for yes. */
record Options(
        int rows,
        int payload,
        int parallelism,
        int inFlight,
        int capacity,
        long call,
        long interval,
        boolean unaligned,
        long seconds,
        int failAfter,
        String folder)
        implements Serializable {

    static Options parse(String[] words, int from) {
        int rows = 64, payload = 100, parallelism = 2, inFlight = 64, capacity = 64, failAfter = 0;
        long call = 1000, interval = 1000, seconds = 60;
        boolean unaligned = false;
        String folder = null;
        for (int i = from; i < words.length; i++) {
            String name = words[i];
            if (name.equals("--unaligned")) {
                unaligned = true;
                continue;
            }
            if (i + 1 == words.length) {
                throw new IllegalArgumentException(name + " needs a value");
            }
            String value = words[++i];
            switch (name) {
                case "--rows" -> rows = Integer.parseInt(value);
                case "--payload" -> payload = Integer.parseInt(value);
                case "--parallelism" -> parallelism = Integer.parseInt(value);
                // Calls at a time, in all subtasks together.
                case "--in-flight" -> inFlight = Integer.parseInt(value);
                // What the asynchronous operators hold, in all subtasks together; more than --in-flight wait inside of them.
                case "--capacity" -> capacity = Integer.parseInt(value);
                case "--call" -> call = Long.parseLong(value);
                case "--interval" -> interval = Long.parseLong(value);
                case "--seconds" -> seconds = Long.parseLong(value);
                case "--fail-after" -> failAfter = Integer.parseInt(value);
                case "--folder" -> folder = value;
                default -> throw new IllegalArgumentException("there is no option " + name);
            }
        }
        if (folder == null) {
            throw new IllegalArgumentException("--folder is missing: where checkpoints and notes go");
        }
        return new Options(
                rows, payload, parallelism, inFlight, capacity, call, interval, unaligned, seconds, failAfter, folder);
    }

    /** A subtask's part of what is said for all of them. */
    int share(int all) {
        return (all + parallelism - 1) / parallelism;
    }

    Path path(String name) {
        return Path.of(folder, name);
    }
}
