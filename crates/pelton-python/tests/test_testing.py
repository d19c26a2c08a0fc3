"""Services in tests of their own."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pyarrow as pa
import pytest

import pelton as pn
import pelton.testing


class Service(pn.Service):
    def __init__(self, factor: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.factor = factor

    def open(self, ctx: pn.Context) -> None:
        ctx.count("opened")
        ctx.report_memory(1, 2)

    @pn.method(output={"y": int})
    def times(self, batch: pa.RecordBatch) -> Any:
        return {"y": [self.factor * x for x in batch["x"].to_pylist()]}

    @pn.method(output={"y": int}, concurrency=2)
    async def later(self, batch: pa.RecordBatch) -> Any:
        await asyncio.sleep(0)
        return self.times(batch)

    @pn.method(output={"y": int})
    def count(self, batch: pa.RecordBatch) -> Any:
        for y in range(batch["x"][0].as_py()):
            yield {"y": [y]}

    @pn.method(output={"y": int}, concurrency=2)
    async def count_later(self, batch: pa.RecordBatch) -> Any:
        for y in range(batch["x"][0].as_py()):
            yield {"y": [y]}

    @pn.method(output={"y": int}, format="rows")
    def odd(self, rows: list[dict[str, int]]) -> Any:
        return [ValueError("odd") if row["x"] % 2 else {"y": row["x"]} for row in rows]

    @pn.method(output={"y": int})
    def one(self, batch: pa.RecordBatch) -> Any:
        return {"y": [1]}


ROWS = [{"x": 2}, {"x": 3}]


@pytest.mark.parametrize(
    ("method", "expected"), [("times", [20, 30]), ("later", [20, 30]), ("count", [0, 1, 0, 1, 2]), ("count_later", [0, 1, 0, 1, 2])]
)
def test_each_kind_of_method_gives_what_it_gives_in_a_pipeline(method: str, expected: list[int]) -> None:
    service = Service(10)
    assert pelton.testing.call(getattr(service, method), ROWS)["y"].to_pylist() == expected
    assert pn.from_pylist(ROWS).call(getattr(service, method)).to_arrow()["y"].to_pylist() == expected


def test_mistakes_are_the_same() -> None:
    context = pelton.testing.Context()
    with pelton.testing.opened(Service(1), context) as service:
        assert context.counted == {"opened": 1} and context.memory == (1, 2)
        with pytest.raises(pn.UserCodeError, match="gave 1 rows for 2 requests"):
            service.call("one", ROWS)
        with pytest.raises(ValueError, match="odd"):
            service.call("odd", ROWS)
        call = pelton.testing.Call()
        service.call("odd", ROWS, call)
        assert list(call.failed) == [1]
    with pytest.raises(TypeError, match="pickle"):
        unsent = Service(1)
        unsent.lock = threading.Lock()  # type: ignore[attr-defined]
        pelton.testing.call(unsent.times, ROWS)
