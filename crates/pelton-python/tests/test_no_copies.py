"""What a method sees is where the engine received it: in memory that the caller wrote, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import pelton as pn

ROWS = 8
#: Of one row: enough for rows to pass through shared memory.
SIZE = 16 << 10

VECTOR = pa.list_(pa.float32(), SIZE // 4)


def received() -> Iterator[tuple[int, int]]:
    """The addresses of what this process was given to read by those that call it."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            if "memfd:pelton" in line:
                begin, end = line.split()[0].split("-")
                yield int(begin, 16), int(end, 16)


def is_received(address: int, size: int) -> bool:
    return size > 0 and any(begin <= address and address + size <= end for begin, end in received())


class Looks(pn.Service):
    """Says for each column whether its bytes are where they were received."""

    @pn.method(max_rows=1, output={"here": bool, "there": bool, "made": bool})
    def arrow(self, batch: pa.RecordBatch) -> Any:
        found = []
        for column in batch.columns:
            # The bytes and the numbers themselves are the last buffer.
            buffer = column.buffers()[-1]
            found.append(is_received(buffer.address, buffer.size))
        made = pa.array([bytes(SIZE)] * 2).buffers()[-1]
        return self.answer(batch.num_rows, *found, is_received(made.address, made.size))

    @pn.method(max_rows=1, output={"here": bool, "there": bool, "made": bool})
    def numpy(self, columns: dict[str, np.ndarray]) -> Any:
        vectors, numbers = columns["vector"], columns["other"]
        assert vectors.dtype == numbers.dtype == np.float32 and vectors.shape == numbers.shape == (len(vectors), SIZE // 4)
        found = [is_received(array.ctypes.data, array.nbytes) for array in (vectors, numbers, vectors + 1)]
        return self.answer(len(vectors), *found)

    def answer(self, rows: int, here: bool, there: bool, made: bool) -> dict[str, list[bool]]:
        return {"here": [here] * rows, "there": [there] * rows, "made": [made] * rows}


def vectors(seed: int) -> pa.Array:
    numbers = np.random.default_rng(seed).random(ROWS * SIZE // 4, np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(numbers), SIZE // 4)


TABLES = {
    "arrow": {"bytes": pa.array([bytes([n]) * SIZE for n in range(ROWS)]), "vector": vectors(1)},
    "numpy": {"vector": vectors(1), "other": vectors(2)},
}


@pytest.mark.parametrize("method", ["arrow", "numpy"])
def test_columns_are_seen_where_they_were_received(method: str) -> None:
    table = pa.table(TABLES[method])
    found = pn.from_arrow(table).call(getattr(Looks(), method)).select("here", "there", "made").to_pylist()
    # What a method makes itself is somewhere else.
    assert found == [{"here": True, "there": True, "made": False}] * ROWS
