"""The service of the conformance scenarios (``crates/pelton/tests/conformance``), in Python. Run, it prints what a declaration's options say of it."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

import pelton as pn


def note(file: str, line: str) -> None:
    """Adds a line to one of the test's files, in one write."""
    with (folder() / file).open("a") as notes:
        notes.write(line + "\n")


def folder() -> Path:
    return Path(os.environ["PELTON_TEST_FOLDER"])


def first(mark: str) -> bool:
    """Whether this is the first to say so, over all processes."""
    try:
        (folder() / mark).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def numbers(batch: pa.RecordBatch) -> list[int]:
    values: list[int] = batch.column(0).to_pylist()
    return values


class Conforming(pn.Service):
    def open(self, ctx: pn.Context) -> None:
        note("opened", f"{ctx.service} {os.getpid()}")
        self.service = ctx.service
        self.running = self.left = self.runs = 0
        self.tried: set[int] = set()
        if ctx.service == "opens-slowly":
            time.sleep(1)
        if ctx.service == "opens-never":
            raise FileNotFoundError("no model here")
        if ctx.service == "opens-later" and first("opens-later"):
            raise pn.TransientError("not yet")

    @pn.method
    def echo(self, batch: pa.RecordBatch) -> Any:
        return batch

    @pn.method
    def types(self, batch: pa.RecordBatch) -> Any:
        return batch

    @pn.method
    def rows(self, batch: pa.RecordBatch) -> Any:
        return {"rows": [batch.num_rows] * batch.num_rows}

    @pn.method
    def bytes(self, batch: pa.RecordBatch) -> Any:
        return {"bytes": [sum(map(len, batch["payload"].to_pylist()))] * batch.num_rows}

    @pn.method
    def fails(self, batch: pa.RecordBatch) -> Any:
        all = numbers(batch)
        if all[0] == 0:
            raise ValueError("the row is zero")
        if all[0] == 1:
            raise ZeroDivisionError("the row is one")
        if all[0] == 2 and 2 not in self.tried:
            self.tried.add(2)
            raise pn.TransientError("not now")
        if all[0] == 3:
            return {"n": []}
        if all[0] == 4:
            os.abort()
        if all[0] == 5:
            return {"m": all}
        if all[0] == 6 and len(all) > 1:
            raise MemoryError("one row fits")
        if 107 in all:
            raise ValueError("107 is bad")
        return batch

    @pn.method
    def mark(self, batch: pa.RecordBatch, call: pn.Call) -> Any:
        self.runs += batch.num_rows
        for row, n in enumerate(numbers(batch)):
            if n % 2 == 1:
                call.fail(row, f"{n} is odd")
        return {"runs": [self.runs] * batch.num_rows}

    @pn.method
    def wait(self, batch: pa.RecordBatch, call: pn.Call) -> Any:
        for _ in range(max(numbers(batch)) // 5):
            if call.is_cancelled():
                self.left += 1
                break
            time.sleep(0.005)
        return batch

    @pn.method
    def stopped(self, batch: pa.RecordBatch) -> Any:
        return {"stopped": [self.left] * batch.num_rows}

    @pn.method
    def crash(self, batch: pa.RecordBatch) -> Any:
        for n in numbers(batch):
            if n % 400 == 123 and first(f"crash-{n}"):
                if n % 800 == 123:
                    os._exit(3)
                ctypes.string_at(0)  # a segmentation fault
        time.sleep(0.002)
        return {"twice": [2 * n for n in numbers(batch)]}

    @pn.method(concurrency=4)
    async def side_by_side(self, batch: pa.RecordBatch) -> Any:
        self.running += 1
        at_start = self.running
        await asyncio.sleep(0.03)
        most = max(at_start, self.running)
        self.running -= 1
        return {"running": [most] * batch.num_rows}

    @pn.method
    def count(self, batch: pa.RecordBatch) -> Iterator[Any]:
        try:
            for i in range(numbers(batch)[0]):
                yield {"i": [i, i]}
        except GeneratorExit:
            self.left += 1
            raise

    @pn.method(concurrency=4)
    async def count_later(self, batch: pa.RecordBatch) -> AsyncIterator[Any]:
        for i in range(numbers(batch)[0]):
            yield {"i": [i, i]}

    def close(self) -> None:
        note("closed", f"{self.service} {os.getpid()}")


if __name__ == "__main__":
    # By the name of its module, as a program that imports it has it.
    from conforming import Conforming as Imported
    from pelton import _run

    pickled = _run._pickled("the service", Imported())
    print(json.dumps({"service": pickled, "path": _run._search_path(), "device": "cpu", "build": _run._BUILD}))
