package pelton.flink;

/** What a request ended with: the service's own error. */
public final class RpcException extends RuntimeException {
    private static final long serialVersionUID = 1;

    private final String kind;
    private final String fate;

    RpcException(String kind, String fate, String message) {
        super(message);
        this.kind = kind;
        this.fate = fate;
    }

    /** What went wrong: {@code user}, {@code invalid}, {@code deadline}, {@code limit}, ... */
    public String kind() {
        return kind;
    }

    /** What the instance may have done: {@code NotSent}, {@code Refused}, {@code Unknown} or {@code Executed}. */
    public String fate() {
        return fate;
    }
}
