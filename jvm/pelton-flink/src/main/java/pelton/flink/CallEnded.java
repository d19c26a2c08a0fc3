package pelton.flink;

import org.apache.flink.api.connector.source.SourceEvent;

/** A subtask of a call has had its last answer, and will ask for none any more. */
record CallEnded(String run, String call, int subtask, int subtasks) implements SourceEvent {
    private static final String SEPARATOR = "\n";

    String text() {
        return String.join(SEPARATOR, run, call, Integer.toString(subtask), Integer.toString(subtasks));
    }

    static CallEnded parse(String text) {
        String[] parts = text.split(SEPARATOR);
        return new CallEnded(parts[0], parts[1], Integer.parseInt(parts[2]), Integer.parseInt(parts[3]));
    }
}
