"""A caller of Pelton services, after docs/protocol.md: standard library sockets, and pyarrow for record batches.

One thread, one connection, plain bodies (no shared memory), no TLS. It shows the protocol; it does not retry elsewhere.

    python pelton_client.py unix:/PATH TOKEN                          # what can be called
    python pelton_client.py --job JOB SERVICE                         # the same of a job on this machine
    python pelton_client.py --job JOB SERVICE METHOD < rows.jsonl     # calls it, one request a line
"""

import json
import os
import secrets
import select
import socket
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

VERSION = 4
(HELLO, WELCOME, REFUSED, ANNOUNCE, PERMIT, RETURN, REQUEST, RESULTS, FAILURE, HAND_BACK, ATTACH, CANCEL, ACKNOWLEDGE,
 DRAINING, LOAD, PING, PONG, STATUS, DRAIN, STOP, QUERY, REPORT, COMMAND, HOLDS) = range(1, 25)
CREDIT, RESUME, SEGMENT, RELEASE, PIECE = range(30, 35)
INLINE, IN_SEGMENT, IN_PIECES = 0, 1, 2
PIECE_BYTES = 256 << 10
MIB = 1 << 20

ERRORS = {1: "connect", 2: "reset", 3: "overload", 4: "no-progress", 5: "deadline", 6: "cancelled", 7: "invalid", 8: "user",
          9: "limit", 10: "protocol", 11: "denied", 12: "storage", 13: "internal", 14: "out-of-memory"}
FATES = ("not sent", "refused", "unknown", "executed")


class Error(Exception):
    """What a service, or the protocol, says went wrong."""

    def __init__(self, kind, fate, message):
        super().__init__(message)
        self.kind, self.fate = kind, fate


# --- the parts of a meta part ---


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, layout):
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values if len(values) > 1 else values[0]

    def error(self):
        kind, fate, _retry, _wait = self.take("BBBQ")
        length = self.take("I")
        message = self.data[self.at:self.at + length].decode()
        self.at += length
        return Error(ERRORS.get(kind, "internal"), FATES[fate], message)

    def runs(self):
        """Ids, one after another."""
        ids = []
        for _ in range(self.take("I")):
            operator, group, first, count = self.take("IQQI")
            ids.extend((operator, group, first + i) for i in range(count))
        return ids


def runs(ids):
    """Consecutive ids as one run, which is all that this client has."""
    operator, group, first = ids[0]
    return struct.pack("<IIQQI", 1, operator, group, first, len(ids))


# --- schemas ---


PLAIN = {"Null": pa.null(), "Boolean": pa.bool_(), "Utf8": pa.string(), "LargeUtf8": pa.large_string(),
         "Binary": pa.binary(), "LargeBinary": pa.large_binary(), "Date32": pa.date32(), "Date64": pa.date64(),
         "Float16": pa.float16(), "Float32": pa.float32(), "Float64": pa.float64(),
         **{f"{sign}Int{bits}": getattr(pa, f"{sign.lower()}int{bits}")() for sign in ("", "U") for bits in (8, 16, 32, 64)}}
UNITS = {"Second": "s", "Millisecond": "ms", "Microsecond": "us", "Nanosecond": "ns"}


def data_type(said):
    if isinstance(said, str):
        return PLAIN[said]
    [(name, inner)] = said.items()
    match name:
        case "List":
            return pa.list_(field(inner))
        case "LargeList":
            return pa.large_list(field(inner))
        case "FixedSizeList":
            return pa.list_(field(inner[0]), inner[1])
        case "FixedSizeBinary":
            return pa.binary(inner)
        case "Struct":
            return pa.struct([field(f) for f in inner])
        case "Timestamp":
            return pa.timestamp(UNITS[inner[0]], inner[1])
        case "Duration":
            return pa.duration(UNITS[inner])
    raise NotImplementedError(f"columns of {said}")


def field(said):
    return pa.field(said["name"], data_type(said["data_type"]), said["nullable"])


def schema(said):
    return pa.schema([field(f) for f in said["fields"]])


# --- a connection ---


@dataclass
class Frame:
    kind: int
    meta: bytes
    body: bytes


class Connection:
    """Frames over a socket, after the greeting."""

    def __init__(self, address, role, token, job, client="python", epoch=1):
        kind, _, place = address.partition(":")
        if kind == "unix":
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(place)
        else:
            host, _, port = place.removeprefix("//").rpartition(":")
            self.socket = socket.create_connection((host, int(port)))
        hello = dict(oldest=VERSION, newest=VERSION, role=role, token=token, job=job, client=client, epoch=epoch)
        self.send(HELLO, json.dumps(hello).encode())
        answer = self.receive()
        if answer.kind == REFUSED:
            raise Reader(answer.meta).error()
        assert answer.kind == WELCOME, f"a frame of kind {answer.kind} for an answer to the greeting"
        self.welcome = json.loads(answer.meta)

    def close(self):
        self.socket.close()

    def send(self, kind, meta=b"", body=b""):
        place = IN_PIECES if len(body) > PIECE_BYTES else INLINE
        head = struct.pack("<BBHII", kind, place, 0, len(meta), len(body)) + meta
        if place == INLINE:
            return self.socket.sendall(head + body)
        self.socket.sendall(head)
        for at in range(0, len(body), PIECE_BYTES):
            piece = body[at:at + PIECE_BYTES]
            self.socket.sendall(struct.pack("<BBHII", PIECE, INLINE, 0, 0, len(piece)) + piece)

    def _read(self, length):
        data = bytearray()
        while len(data) < length:
            got = self.socket.recv(min(length - len(data), MIB))
            if not got:
                raise Error("reset", "unknown", "the connection ended")
            data += got
        return bytes(data)

    def _one(self):
        kind, place, _, meta, body = struct.unpack("<BBHII", self._read(12))
        assert place != IN_SEGMENT, "segments were not asked for"
        meta = self._read(meta)
        return place, body, Frame(kind, meta, b"" if place == IN_PIECES else self._read(body))

    def receive(self, until=None):
        """The next frame. What overtakes a body in pieces comes before it. None: nothing has come by then."""
        if until is not None and not select.select([self.socket], [], [], max(0, until - time.monotonic()))[0]:
            return None
        if (frame := self._overtaking()) is not None:
            return frame
        place, length, frame = self._one()
        if place != IN_PIECES:
            return frame
        self.begun = (frame, length, bytearray())
        return self.receive()

    begun = None

    def _overtaking(self):
        while self.begun is not None:
            whole, length, body = self.begun
            if len(body) == length:
                self.begun = None
                return Frame(whole.kind, whole.meta, bytes(body))
            _, _, frame = self._one()
            if frame.kind != PIECE:
                return frame
            body += frame.body
        return None


# --- calls ---


@dataclass
class Method:
    index: int
    name: str
    input: pa.Schema
    output: pa.Schema
    streams: bool


class Client:
    def __init__(self, address, token, job=None):
        # A job of one's own by name: nobody else's ids are heard of.
        job = job or f"python-{secrets.token_hex(16)}"
        self.connection = Connection(address, "caller", token, job)
        self.methods = {m["name"]: Method(i, m["name"], schema(m["input"]), schema(m["output"]), m["cardinality"] == "many")
                        for i, m in enumerate(self.connection.welcome["methods"])}
        self.group, self.sequence = secrets.randbits(64), 0
        # Rows, counted from the start of the connection.
        self.permitted, self.sent = 0, 0
        self.pings = 0

    def close(self):
        self.connection.close()

    def call(self, name, rows, **how):
        """One request a row; all answers, in their order."""
        parts = [[] for _ in range(rows.num_rows)]
        for request, part in self.stream(name, rows, **how):
            parts[request].append(part)
        method = self.methods[name]
        return pa.Table.from_batches([p for request in parts for p in request], schema=method.output)

    def stream(self, name, rows, timeout=None, window=4 * MIB):
        """One request a row: (request, rows) as they come. Leaving it takes back what has not ended."""
        method, connection = self.methods[name], self.connection
        rows = rows.select(method.input.names).cast(method.input)
        until = None if timeout is None else time.monotonic() + timeout
        ids = [(0xffffffff, self.group, self.sequence + i) for i in range(rows.num_rows)]
        self.sequence += len(ids)
        waiting, open_ids = list(range(len(ids))), set(ids)
        connection.send(CREDIT, struct.pack("<QQI", window, 8 * window, 0))
        self._announce(rows, waiting)
        try:
            while open_ids:
                frame = connection.receive(until)
                if frame is None:
                    raise Error("deadline", "unknown", "the deadline passed")
                meta = Reader(frame.meta)
                if frame.kind == PERMIT:
                    self.permitted = meta.take("QQ")[0]
                    self._send(method, rows, ids, waiting, until)
                elif frame.kind == RESULTS:
                    meta.take("H")
                    entries = [(meta.take("IQQI"), meta.take("IB")) for _ in range(meta.take("I"))]
                    total = sum(count * each for (_, _, _, count), (each, _) in entries)
                    batch = pa.ipc.read_record_batch(pa.py_buffer(frame.body), method.output)
                    assert batch.num_rows == total
                    at = 0
                    for (operator, group, first, count), (each, last) in entries:
                        for i in range(count):
                            part, at = batch.slice(at, each), at + each
                            id = (operator, group, first + i)
                            if id not in open_ids:
                                continue
                            if last:
                                open_ids.remove(id)
                                connection.send(ACKNOWLEDGE, runs([id]))
                            else:
                                connection.send(CREDIT, struct.pack("<QQIIQQI", window, 8 * window, 1, *id, 1))
                            if each:
                                yield id[2] - ids[0][2], part
                elif frame.kind == FAILURE:
                    error = meta.error()
                    ended = open_ids.intersection(meta.runs())
                    if ended and (error.kind, error.fate) == ("overload", "refused"):
                        # No attempt: again, with a permit.
                        waiting.extend(sorted(id[2] - ids[0][2] for id in ended))
                        self._announce(rows, waiting)
                    elif ended:
                        open_ids -= ended
                        raise error
                elif frame.kind == HAND_BACK:
                    back = sorted(id[2] - ids[0][2] for id in open_ids.intersection(meta.runs()))
                    waiting.extend(back)
                    self._announce(rows, waiting)
                elif frame.kind == PING:
                    connection.send(PONG, frame.meta)
                elif frame.kind == DRAINING:
                    if waiting:
                        raise Error("connect", "not sent", "the instance drains; go to another")
        finally:
            if open_ids:
                for id in open_ids:
                    connection.send(CANCEL, runs([id]))
            # Nothing more is wanted, and what was permitted meanwhile is of use to others.
            self._announce(rows, [])
            if self.permitted > self.sent:
                connection.send(RETURN, struct.pack("<Q", self.permitted - self.sent))
                self.sent = self.permitted
            self._settle()

    def _announce(self, rows, waiting):
        each = rows.nbytes // max(rows.num_rows, 1)
        wanted = len(waiting)
        self.connection.send(ANNOUNCE, struct.pack("<QQdQQQ", self.permitted + wanted, each, 1.0, 0, wanted, 0))

    def _send(self, method, rows, ids, waiting, until):
        """As many as are permitted. Permits that come for more than there is go back."""
        while waiting and self.sent < self.permitted:
            # A run of rows that follow one another.
            take = 1
            while take < min(len(waiting), self.permitted - self.sent) and waiting[take] == waiting[0] + take:
                take += 1
            first = waiting[0]
            del waiting[:take]
            left = until and max(0, int((until - time.monotonic()) * 1e6))
            deadline = b"\0" if until is None else struct.pack("<BQ", 1, left)
            meta = struct.pack("<HBB", method.index, 0, 0) + deadline + runs(ids[first:first + take])
            self.connection.send(REQUEST, meta, rows.slice(first, take).serialize().to_pybytes())
            self.sent += take
        if self.permitted > self.sent:
            self.connection.send(RETURN, struct.pack("<Q", self.permitted - self.sent))
            self.sent = self.permitted

    def _settle(self):
        """Waits until all that was said before has been heard, and passes over what is said meanwhile."""
        self.pings += 1
        self.connection.send(PING, struct.pack("<Q", self.pings))
        while True:
            frame = self.connection.receive()
            if frame.kind == PONG and Reader(frame.meta).take("Q") == self.pings:
                return
            if frame.kind == PERMIT:
                self.permitted = Reader(frame.meta).take("QQ")[0]
                if self.permitted > self.sent:
                    self.connection.send(RETURN, struct.pack("<Q", self.permitted - self.sent))
                    self.sent = self.permitted
            elif frame.kind == PING:
                self.connection.send(PONG, frame.meta)


# --- a job on this machine ---


def run_folder():
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(runtime) / "pelton" if os.path.isdir(runtime) else Path(f"/tmp/pelton-{os.getuid()}")


def find(job, service, base=None):
    """The addresses of a service's instances, and the token."""
    for card in (base or run_folder()).glob("*/job.json"):
        said = json.loads(card.read_text())
        if job not in (said["job"], said["name"]):
            continue
        try:
            control = Connection(f"unix:{card.parent / 'control.sock'}", "observer", said["token"], said["job"])
        except OSError:
            continue
        control.send(COMMAND, json.dumps({"command": "follow", "service": service}).encode())
        answer = json.loads(control.receive().meta)
        if "refused" in answer:
            raise Error("invalid", "not sent", answer["refused"])
        known = {e["instance"]["number"]: e["address"] for e in json.loads(control.receive().meta)["reset"]}
        while not known:
            for change, said_of in json.loads(control.receive().meta).items():
                if change == "add":
                    known[said_of["instance"]["number"]] = said_of["address"]
        control.close()
        return [f"unix:{address['unix']}" for address in known.values()], said["token"]
    raise Error("connect", "not sent", f"no job `{job}` runs here")


def main(arguments):
    if arguments[0] == "--job":
        addresses, token = find(arguments[1], arguments[2])
        client, rest = Client(addresses[0], token), arguments[3:]
    else:
        client, rest = Client(arguments[0], arguments[1]), arguments[2:]
    if not rest:
        for method in client.methods.values():
            inputs, outputs = (", ".join(f"{f.name}: {f.type}" for f in s) for s in (method.input, method.output))
            print(f"{method.name}({inputs}) -> ({outputs}){' in parts' if method.streams else ''}")
        return
    lines = [json.loads(line) for line in sys.stdin if line.strip()]
    method = client.methods[rest[0]]
    for row in client.call(rest[0], pa.RecordBatch.from_pylist(lines, schema=method.input)).to_pylist():
        print(json.dumps(row))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Error as e:
        sys.exit(f"{e.kind} ({e.fate}): {e}")
