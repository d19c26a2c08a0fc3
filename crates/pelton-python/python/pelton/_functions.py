"""Functions of a pipeline as services: a function never runs in the engine, but in worker processes of its own."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

from ._batches import Format, a, batch_of, given_as, learnt, rows_of
from ._errors import UserCodeError
from ._pelton import Call, Context
from ._service import Method, Service, service_name

#: The columns that functions are called with and give, where rows are packed: one list of rows a request.
PACKED, ANSWER = "rows", "answer"
#: What the columns that a function gives for a row are called until they replace it.
GIVEN = "given "


#: The most rows for which a function that gets one at a time is called in a batch.
_ROWS = 128


class Function(Service):
    """A function of the user's, or a class that is made once in each worker process and called."""

    def __init__(self, function: Any, output: pa.Schema, format: Format, **settings: Any) -> None:
        super().__init__(**settings)
        self.given = function
        self.output = output
        self.format: Format = format
        self.what = f"function `{name_of(function)}`"
        self.function: Callable[..., Any] = function

    def open(self, ctx: Context) -> None:
        self.function = self.given() if isinstance(self.given, type) else self.given

    def _service_name(self) -> str:
        return self._settings.name or service_name(name_of(self.given))

    def _only(self, name: str, output: pa.Schema, max_rows: int = _ROWS) -> dict[str, Method[Any]]:
        method = Method(
            type(self).answer, input=None, output=output, format="arrow", max_rows=max_rows, linger=None, concurrency=None
        )
        method.name = name
        return {name: method}

    def _methods(self) -> dict[str, Method[Any]]:
        raise NotImplementedError

    def answer(self, batch: pa.RecordBatch, call: Call) -> Any:
        raise NotImplementedError


def name_of(function: Any) -> str:
    name = getattr(function, "__name__", None) or type(function).__name__
    return "lambda" if name == "<lambda>" else str(name)


class MapRows(Function):
    """One row for each."""

    def _methods(self) -> dict[str, Method[Any]]:
        given = pa.schema([field.with_name(GIVEN + field.name) for field in self.output])
        return self._only("map", given)

    def answer(self, batch: pa.RecordBatch, call: Call) -> Any:
        given = [_or_error(self.function, row) for row in rows_of(batch)]
        try:
            # All at once; only if some are not what they must be is each looked at.
            batch_of([row for row in given if not isinstance(row, Exception)] or pa.RecordBatch.from_pylist([], self.output), self.output, self.what)
        except UserCodeError:
            given = [_or_error(self._checked, row) for row in given]
        return [row if isinstance(row, Exception) else {GIVEN + name: value for name, value in row.items()} for row in given]

    def _checked(self, given: Any) -> Any:
        if not isinstance(given, Exception):
            batch_of([given], self.output, self.what)
        return given


class KeepRows(Function):
    """Whether to keep each row."""

    def _methods(self) -> dict[str, Method[Any]]:
        return self._only("filter", pa.schema([pa.field(GIVEN, pa.bool_())]))

    def answer(self, batch: pa.RecordBatch, call: Call) -> Any:
        return [_or_error(lambda row: {GIVEN: bool(self.function(row))}, row) for row in rows_of(batch)]


class FlatMapRows(Function):
    """Any number of rows for each."""

    def _methods(self) -> dict[str, Method[Any]]:
        return self._only("flat_map", packed(self.output, ANSWER))

    def answer(self, batch: pa.RecordBatch, call: Call) -> Any:
        made = [self._one(at, row, call) for at, row in enumerate(rows_of(batch))]
        return pa.RecordBatch.from_arrays([_lists(made, self.output)], schema=packed(self.output, ANSWER))

    def _one(self, at: int, row: dict[str, Any], call: Call) -> pa.RecordBatch | None:
        try:
            rows = _rows(self.function(row), self.what)
            return batch_of(rows, self.output, self.what) if rows else None
        except Exception as e:
            call.fail(at, e)
            return None


class MapBatches(Function):
    """Any number of rows for a batch."""

    def _methods(self) -> dict[str, Method[Any]]:
        # A request is a batch of rows already.
        return self._only("map_batches", packed(self.output, ANSWER), max_rows=1)

    def answer(self, batch: pa.RecordBatch, call: Call) -> Any:
        rows = unpacked(batch, PACKED)
        given = self.function(given_as(rows, self.format))
        parts = given if inspect.isgenerator(given) else [given]
        made = pa.Table.from_batches([batch_of(part, self.output, self.what) for part in parts], self.output)
        return pa.RecordBatch.from_arrays([_lists(made.to_batches(), self.output, one=True)], schema=packed(self.output, ANSWER))


class Learn(Function):
    """What columns a function gives: its answer is a schema, or none where it gave nothing that would tell."""

    def __init__(self, function: Any, kind: str, format: Format, **settings: Any) -> None:
        super().__init__(function, pa.schema([]), format, **settings)
        self.kind = kind

    def _methods(self) -> dict[str, Method[Any]]:
        return self._only("learn", pa.schema([pa.field(ANSWER, pa.binary())]), max_rows=1)

    def answer(self, batch: pa.RecordBatch, call: Call) -> Any:
        rows = unpacked(batch, PACKED)
        if self.kind == "map_batches":
            given = self.function(given_as(rows, self.format))
            if inspect.isgenerator(given) and (given := next(given, None)) is None:
                return {ANSWER: pa.nulls(1, pa.binary())}
            found = learnt(given, self.what)
        elif self.kind == "map":
            found = learnt([self.function(row) for row in rows_of(rows)], self.what)
        else:
            many = [one for row in rows_of(rows) for one in _rows(self.function(row), self.what)]
            if not many:
                # Of others, perhaps.
                return {ANSWER: pa.nulls(1, pa.binary())}
            found = learnt(many, self.what)
        unknown = [field.name for field in found if pa.types.is_null(field.type)]
        if unknown:
            raise UserCodeError(
                f"{self.what}: column `{unknown[0]}` has no value in the first {rows.num_rows} rows, so its type is not known; declare `output=`"
            )
        return {ANSWER: [found.serialize().to_pybytes()]}


def _or_error(one: Callable[[Any], Any], row: Any) -> Any:
    try:
        return one(row)
    except Exception as e:
        return e


def _rows(given: Any, what: str) -> list[Any]:
    if isinstance(given, (str, bytes, dict)) or not isinstance(given, Iterable):
        raise UserCodeError(f"{what} gave {a(given)} for a row; it must return a list of rows, or yield them")
    return list(given)


def packed(columns: pa.Schema, name: str) -> pa.Schema:
    """One column of lists of such rows."""
    return pa.schema([pa.field(name, pa.list_(pa.field("item", pa.struct(list(columns)), nullable=False)), nullable=False)])


def _lists(batches: Sequence[pa.RecordBatch | None], columns: pa.Schema, one: bool = False) -> pa.ListArray:
    """The rows of each of these as a list, or those of all as one."""
    rows = pa.Table.from_batches([batch for batch in batches if batch is not None], columns).combine_chunks()
    arrays = [column.combine_chunks() for column in rows.columns]
    arrays = [array.chunk(0) if isinstance(array, pa.ChunkedArray) else array for array in arrays]
    structs = pa.StructArray.from_arrays(arrays, fields=list(columns)) if arrays else pa.array([{}] * rows.num_rows, pa.struct([]))
    lengths = [rows.num_rows] if one else [batch.num_rows if batch is not None else 0 for batch in batches]
    offsets = [0, *itertools.accumulate(lengths)]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs, type=packed(columns, ANSWER).field(0).type)


def unpacked(batch: pa.RecordBatch, name: str) -> pa.RecordBatch:
    """The rows of the lists of a column."""
    structs = batch.column(name).flatten()
    return pa.RecordBatch.from_arrays(structs.flatten(), schema=pa.schema(list(structs.type)))
