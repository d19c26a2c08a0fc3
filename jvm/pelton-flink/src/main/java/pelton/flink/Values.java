package pelton.flink;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** Rows as they cross between Java and Rust; the same as in values.rs. */
final class Values {
    private static final byte NULL = 0;
    private static final byte FALSE = 1;
    private static final byte TRUE = 2;
    private static final byte INT = 3;
    private static final byte LONG = 4;
    private static final byte FLOAT = 5;
    private static final byte DOUBLE = 6;
    private static final byte TEXT = 7;
    private static final byte BYTES = 8;
    private static final byte LIST = 9;
    private static final byte FLOATS = 10;
    private static final byte DOUBLES = 11;
    private static final byte INTS = 12;
    private static final byte LONGS = 13;

    private Values() {}

    /** Collects values; grows as it has to. */
    static final class Writer {
        private ByteBuffer buffer = ByteBuffer.allocate(1 << 12).order(ByteOrder.LITTLE_ENDIAN);

        private ByteBuffer room(int bytes) {
            if (buffer.remaining() < bytes) {
                int size = Math.max(buffer.capacity() * 2, Math.addExact(buffer.position(), bytes));
                buffer = ByteBuffer.wrap(Arrays.copyOf(buffer.array(), size)).order(ByteOrder.LITTLE_ENDIAN).position(buffer.position());
            }
            return buffer;
        }

        int size() {
            return buffer.position();
        }

        byte[] array() {
            return buffer.array();
        }

        byte[] copy() {
            return Arrays.copyOf(buffer.array(), buffer.position());
        }

        /** Forgets everything from here on. */
        void back(int size) {
            buffer.position(size);
        }

        void putInt(int value) {
            room(4).putInt(value);
        }

        void setInt(int at, int value) {
            buffer.putInt(at, value);
        }

        void putLong(long value) {
            room(8).putLong(value);
        }

        private void tagged(byte kind, byte[] bytes) {
            room(5 + bytes.length).put(kind).putInt(bytes.length).put(bytes);
        }

        void put(Object value) {
            if (value == null) {
                room(1).put(NULL);
            } else if (value instanceof String text) {
                tagged(TEXT, text.getBytes(StandardCharsets.UTF_8));
            } else if (value instanceof Integer || value instanceof Short || value instanceof Byte) {
                room(5).put(INT).putInt(((Number) value).intValue());
            } else if (value instanceof Long n) {
                room(9).put(LONG).putLong(n);
            } else if (value instanceof Float n) {
                room(5).put(FLOAT).putFloat(n);
            } else if (value instanceof Double n) {
                room(9).put(DOUBLE).putDouble(n);
            } else if (value instanceof Boolean bit) {
                room(1).put(bit ? TRUE : FALSE);
            } else if (value instanceof byte[] bytes) {
                tagged(BYTES, bytes);
            } else if (value instanceof float[] all) {
                room(5 + 4 * all.length).put(FLOATS).putInt(all.length);
                for (float one : all) {
                    buffer.putFloat(one);
                }
            } else if (value instanceof double[] all) {
                room(5 + 8 * all.length).put(DOUBLES).putInt(all.length);
                for (double one : all) {
                    buffer.putDouble(one);
                }
            } else if (value instanceof int[] all) {
                room(5 + 4 * all.length).put(INTS).putInt(all.length);
                for (int one : all) {
                    buffer.putInt(one);
                }
            } else if (value instanceof long[] all) {
                room(5 + 8 * all.length).put(LONGS).putInt(all.length);
                for (long one : all) {
                    buffer.putLong(one);
                }
            } else if (value instanceof Object[] all) {
                list(Arrays.asList(all));
            } else if (value instanceof List<?> all) {
                list(all);
            } else {
                throw new IllegalArgumentException(
                        "a value of " + value.getClass().getName() + " does not cross to a service; booleans, numbers, String, byte[], arrays of numbers and lists of these do");
            }
        }

        private void list(List<?> all) {
            room(5).put(LIST).putInt(all.size());
            all.forEach(this::put);
        }
    }

    /** Reads what Rust wrote. */
    static final class Reader {
        private final ByteBuffer buffer;

        Reader(byte[] bytes) {
            buffer = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
        }

        boolean hasMore() {
            return buffer.hasRemaining();
        }

        int readInt() {
            return buffer.getInt();
        }

        long readLong() {
            return buffer.getLong();
        }

        byte[] readBytes() {
            return bytes();
        }

        private byte[] bytes() {
            byte[] bytes = new byte[buffer.getInt()];
            buffer.get(bytes);
            return bytes;
        }

        Object read() {
            byte kind = buffer.get();
            switch (kind) {
                case NULL:
                    return null;
                case FALSE:
                    return false;
                case TRUE:
                    return true;
                case INT:
                    return buffer.getInt();
                case LONG:
                    return buffer.getLong();
                case FLOAT:
                    return buffer.getFloat();
                case DOUBLE:
                    return buffer.getDouble();
                case TEXT:
                    return new String(bytes(), StandardCharsets.UTF_8);
                case BYTES:
                    return bytes();
                case LIST: {
                    Object[] all = new Object[buffer.getInt()];
                    for (int i = 0; i < all.length; i++) {
                        all[i] = read();
                    }
                    return all;
                }
                case FLOATS: {
                    float[] all = new float[buffer.getInt()];
                    buffer.asFloatBuffer().get(all);
                    buffer.position(buffer.position() + 4 * all.length);
                    return all;
                }
                case DOUBLES: {
                    double[] all = new double[buffer.getInt()];
                    buffer.asDoubleBuffer().get(all);
                    buffer.position(buffer.position() + 8 * all.length);
                    return all;
                }
                case INTS: {
                    int[] all = new int[buffer.getInt()];
                    buffer.asIntBuffer().get(all);
                    buffer.position(buffer.position() + 4 * all.length);
                    return all;
                }
                case LONGS: {
                    long[] all = new long[buffer.getInt()];
                    buffer.asLongBuffer().get(all);
                    buffer.position(buffer.position() + 8 * all.length);
                    return all;
                }
                default:
                    throw new IllegalStateException("a value of the unknown kind " + kind + " from the native library");
            }
        }
    }

    /** Texts, one behind another. */
    static List<String> texts(byte[] bytes) {
        Reader reader = new Reader(bytes);
        List<String> texts = new ArrayList<>();
        while (reader.hasMore()) {
            texts.add((String) reader.read());
        }
        return texts;
    }
}
