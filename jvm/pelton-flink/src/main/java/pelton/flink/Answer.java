package pelton.flink;

import java.util.Arrays;
import java.util.List;

/** One row of an answer. Whole numbers up to 32 bits are Integer, longer ones Long; text is String, bytes are byte[], lists of numbers arrays. */
public final class Answer {
    private final List<String> names;
    private final Object[] values;

    Answer(List<String> names, Object[] values) {
        this.names = names;
        this.values = values;
    }

    public List<String> names() {
        return names;
    }

    public Object get(int column) {
        return values[column];
    }

    /** The value of a column, as what the place wants it for; null where it is null. */
    @SuppressWarnings("unchecked")
    public <V> V get(String column) {
        int index = names.indexOf(column);
        if (index < 0) {
            throw new IllegalArgumentException("an answer has no column " + column + "; it has " + names);
        }
        return (V) values[index];
    }

    @Override
    public String toString() {
        return names + " " + Arrays.deepToString(values);
    }
}
