"""What a caller in another language can do, against a real instance: `calls.py ADDRESS TOKEN JOB` with `pelton_client` on the path."""

import sys

import pyarrow as pa
from pelton_client import Client, Connection, Error, find

address, token, job = sys.argv[1:]


def done(what):
    print(f"ok: {what}", flush=True)


def refused(call):
    try:
        call()
    except Error as e:
        return e
    raise AssertionError("it was not refused")


def text(*values):
    return pa.RecordBatch.from_pydict({"text": list(values)})


def number(*values):
    return pa.RecordBatch.from_pydict({"n": list(values)})


client = Client(address, token)
assert list(client.methods) == ["shout", "sleep", "together", "who", "fail", "count"], client.methods
assert client.methods["count"].streams and client.methods["shout"].input == pa.schema([pa.field("text", pa.string(), False)])
done("the greeting, the methods and their columns")

loud = client.call("shout", text(*(f"row {n}" for n in range(300))))
assert loud.column("loud").to_pylist() == [f"ROW {n}" for n in range(300)]
done("300 rows, as they are permitted")

large = ["ab" * (1 << 20), "c", "de" * 100_000]
assert client.call("shout", text(*large)).column("loud").to_pylist() == [t.upper() for t in large]
done("bodies in pieces, both ways")

parts = list(client.stream("count", number(50, 3), window=32 << 10))
rows = {request: [i for r, part in parts if r == request for i in part.column(0).to_pylist()[::1000]] for request in (0, 1)}
assert len([1 for r, _ in parts if r == 0]) >= 50 and sum(part.num_rows for _, part in parts) == 53_000
for request, n in ((0, 50), (1, 3)):
    assert sorted(set(i for r, part in parts if r == request for i in part.column(0).to_pylist())) == list(range(n))
done("streams of more than their window")

for taken, _ in enumerate(client.stream("count", number(1 << 40), window=32 << 10)):
    if taken == 5:
        break
assert client.call("together", number(1)).to_pylist() == [{"rows": 1}]
done("an endless stream that is left")

error = refused(lambda: client.call("fail", number(1)))
assert (error.kind, error.fate, str(error)) == ("user", "executed", "the row is bad"), error
error = refused(lambda: client.call("sleep", pa.RecordBatch.from_pydict({"millis": [60_000]}), timeout=0.05))
assert error.kind == "deadline", error
assert client.call("shout", text("on")).to_pylist() == [{"loud": "ON"}]
error = refused(lambda: Client(address, "0" * 32))
assert (error.kind, error.fate) == ("denied", "refused"), error
done("errors, deadlines, and a wrong token")

addresses, secret = find(job, "words")
assert len(addresses) == 2
for address in addresses:
    assert Client(address, secret).call("shout", text("there")).to_pylist() == [{"loud": "THERE"}]
error = refused(lambda: find(job, "wards"))
assert "it has: words" in str(error), error
done("the instances of a job, by its name")
client.close()
