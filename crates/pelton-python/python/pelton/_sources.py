"""Where rows come from."""

from __future__ import annotations

import glob
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ._batches import a, batch_of, learnt
from ._errors import InvalidError
from ._expressions import col
from ._pelton import table_columns
from ._run import Building
from ._stream import Node, Stream, Table
from ._tensors import image
from ._types import SchemaLike, schema

if TYPE_CHECKING:
    import pandas

#: Rows of an iterator travel in batches of so many.
_ROWS = 256
#: So many are looked at for their columns.
_LOOKED_AT = 8


def from_arrow(table: pa.Table | pa.RecordBatch) -> Stream:
    """The rows of an Arrow table, or of anything that can be made one without a copy."""
    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    elif not isinstance(table, pa.Table):
        try:
            table = pa.table(table)
        except (TypeError, ValueError) as e:
            raise InvalidError(f"from_arrow takes a table of Arrow's, or what can be made one, not {a(table)}: {e}", fate="not-sent") from None
    return Stream(Table(table))


def from_pandas(frame: pandas.DataFrame) -> Stream:
    """The rows of a pandas data frame, without its index."""
    return Stream(Table(pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata()))


def from_pylist(rows: list[dict[str, Any]], *, columns: SchemaLike | None = None) -> Stream:
    """Rows given as dicts."""
    given = schema(columns, "columns") if columns is not None else learnt(rows, "from_pylist") if rows else pa.schema([])
    return Stream(Table(pa.Table.from_batches([batch_of([{n: row.get(n) for n in given.names} for row in rows], given, "from_pylist")], given)))


Rows = Iterable[Mapping[str, Any] | pa.RecordBatch | pa.Table]


def from_iter(rows: Rows | Callable[[], Rows], *, columns: SchemaLike | None = None) -> Stream:
    """The rows of an iterable, a generator, or a function that makes one: dicts, or batches and tables of Arrow.

    It is read in this process, on a thread of its own, and no further ahead than the pipeline asks for. A generator is read once; give a
    function that makes one where the pipeline shall run several times. A job that is started again after it was killed skips the rows that it
    has done, so the iterable must give the same rows each time.

    :param columns: the columns. Left out: those of the first rows.
    """
    if not (callable(rows) or isinstance(rows, Iterable)):
        raise InvalidError(f"from_iter takes an iterable of rows, or a function that makes one, not {rows!r}", fate="not-sent")
    given = None if columns is None else schema(columns, "columns")
    return Stream(Iterated(rows, given))


@dataclass(eq=False)
class Iterated(Node):
    """Rows that Python gives."""

    rows: Any
    given: pa.Schema | None

    @property
    def reads_to_know(self) -> bool:  # type: ignore[override]
        return self.given is None

    def __post_init__(self) -> None:
        self._begun: tuple[list[Any], Iterator[Any]] | None = None
        self._used_up = False

    @cached_property
    def columns(self) -> pa.Schema:
        if self.given is not None:
            return self.given
        head = self._first()
        if not head:
            raise InvalidError("from_iter: there are no rows, so their columns are not known; declare `columns=`", fate="not-sent")
        if not isinstance(head[0], (Mapping, pa.RecordBatch, pa.Table)):
            raise InvalidError(f"from_iter was given {a(head[0])}; each row must be a dict, or several a batch or table of Arrow's", fate="not-sent")
        return learnt(head if isinstance(head[0], Mapping) else head[0], "from_iter")

    def _first(self) -> list[Any]:
        """The first rows, which come first all the same when it is read."""
        if self._begun is None:
            rows = self._start()
            head = list(itertools.islice(rows, 1))
            if head and isinstance(head[0], Mapping):
                head += itertools.islice(rows, _LOOKED_AT - 1)
            self._begun = head, rows
        return self._begun[0]

    def _start(self) -> Iterator[Any]:
        if callable(self.rows):
            made: Iterator[Any] = iter(self.rows())
            return made
        if self._used_up:
            raise InvalidError(
                "from_iter: this iterator was read already; give a function that makes one, to run the pipeline several times", fate="not-sent"
            )
        started: Iterator[Any] = iter(self.rows)
        self._used_up = started is self.rows
        return started

    def put(self, building: Building) -> int:
        columns = self.columns
        if building.explains:
            return building.node(Table(columns.empty_table(), "iterator"))
        if building.learns:
            first = list(_batches(iter(self._first()), columns, begin=_LOOKED_AT))
            return building.node(Table(pa.Table.from_batches(first, columns)))
        head, rows = self._begun or ([], self._start())
        self._begun = None
        node, feed = building.plan.feed(building.name("iterator"), columns)
        building.feeds.append((feed, _batches(itertools.chain(head, rows), columns)))
        return node


def _batches(rows: Iterator[Any], columns: pa.Schema, begin: int = 1) -> Iterator[pa.RecordBatch]:
    waiting: list[Mapping[str, Any]] = []
    size = begin
    for row in rows:
        if isinstance(row, Mapping):
            waiting.append(row)
            if len(waiting) < size:
                continue
            # The first rows go at once, later ones in larger batches.
            size = min(2 * size, _ROWS)
        if waiting:
            yield batch_of(waiting, columns, "from_iter")
            waiting = []
        if isinstance(row, pa.Table):
            yield from (batch_of(part, columns, "from_iter") for part in row.to_batches())
        elif not isinstance(row, Mapping):
            yield batch_of(row, columns, "from_iter")
    if waiting:
        yield batch_of(waiting, columns, "from_iter")


PathLike = str | Path


@dataclass(eq=False)
class Files(Node):
    """Files, one row each, or line by line."""

    kind: str
    selection: dict[str, Any]
    max_bytes: int | None

    @cached_property
    def columns(self) -> pa.Schema:
        if self.kind == "lines":
            return pa.schema([pa.field("line", pa.uint64(), False), pa.field("text", pa.string(), False)])
        return pa.schema([pa.field("uri", pa.string(), False), pa.field("content", pa.binary(), False)])

    def put(self, building: Building) -> int:
        selection = json.dumps(self.selection)
        if self.kind == "lines":
            return building.plan.lines(building.name("lines"), selection)
        return building.plan.files(building.name("files"), selection, self.max_bytes)


def read_files(path: PathLike | list[PathLike], *, max_bytes: int | None = None) -> Stream:
    """Whole files, one row each: ``uri`` (relative to what was named) and ``content`` (bytes).

    :param path: folders, files, or patterns such as ``"docs/**/*.md"``. Names that begin with a dot are left out.
    :param max_bytes: a larger file is an error (64 MiB).
    """
    return Stream(Files("files", selection(path), max_bytes))


def read_images(path: PathLike | list[PathLike], *, max_bytes: int | None = None) -> Stream:
    """Image files, one row each: ``uri`` and ``image`` (see :func:`image`). They are decoded where they are looked at, not here.

    :param path: folders, files, or patterns such as ``"photos/**/*.jpg"``; of a folder, the files that are called as images are.
    """
    found = selection(path)
    if not found["globs"]:
        found["extensions"] = ["bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp"]
    return Stream(Files("files", found, max_bytes)).select("uri", image=col("content").cast(image()))


def read_lines(path: PathLike | list[PathLike]) -> Stream:
    """Text files, one row a line: ``line`` (its number, from 1) and ``text``."""
    return Stream(Files("lines", selection(path), None))


@dataclass(eq=False)
class Tables(Node):
    """Files of rows."""

    kind: str
    selection: dict[str, Any]
    given: pa.Schema | None

    @cached_property
    def columns(self) -> pa.Schema:
        return self.given if self.given is not None else table_columns(self.kind, json.dumps(self.selection))

    def put(self, building: Building) -> int:
        return building.plan.tables(building.name(self.kind), self.kind, json.dumps(self.selection), self.columns)


def _tables(kind: str, path: PathLike | list[PathLike], columns: SchemaLike | None) -> Stream:
    found = selection(path)
    if not found["globs"]:
        # Of a folder, the files of this kind.
        found["extensions"] = {"parquet": ["parquet"], "json": ["json", "jsonl", "ndjson"], "csv": ["csv"]}[kind]
    return Stream(Tables(kind, found, None if columns is None else schema(columns, "columns")))


def read_parquet(path: PathLike | list[PathLike], *, columns: SchemaLike | None = None) -> Stream:
    """The rows of Parquet files: of a folder, of files, or of those that match a pattern.

    :param columns: the columns. Left out: those of the first file, which all others must have.
    """
    return _tables("parquet", path, columns)


def read_json(path: PathLike | list[PathLike], *, columns: SchemaLike | None = None) -> Stream:
    """The rows of files with an object of JSON on each line.

    :param columns: the columns; others are left out. Not given: what the first 1000 lines of the first file tell.
    """
    return _tables("json", path, columns)


def read_csv(path: PathLike | list[PathLike], *, columns: SchemaLike | None = None) -> Stream:
    """The rows of CSV files, whose first line has the column names.

    :param columns: the columns, in the files' order. Left out: what the first 1000 lines of the first file tell.
    """
    return _tables("csv", path, columns)


def selection(path: PathLike | list[PathLike]) -> dict[str, Any]:
    """Which files are meant, as the engine writes it."""
    inputs, globs = [], []
    for given in [path] if isinstance(path, (str, Path)) else path:
        parts = Path(given).parts
        if not any(sign in str(given) for sign in "*?["):
            inputs.append(str(given))
            continue
        if "**" not in parts:
            # A pattern of the engine's holds at any depth; this one does not.
            matching = sorted(glob.glob(str(given)))
            if not matching:
                raise InvalidError(f"no file matches {given}", fate="not-sent")
            inputs.extend(matching)
            continue
        plain = list(itertools.takewhile(lambda part: not any(sign in part for sign in "*?["), parts))
        inputs.append(str(Path(*plain)) if plain else ".")
        globs.append("/".join(parts[len(plain) :]))
    if globs and len(set(inputs)) > 1:
        raise InvalidError("patterns below different folders cannot be read as one source; read each, and use union", fate="not-sent")
    return {"inputs": sorted(set(inputs)), "globs": globs}
