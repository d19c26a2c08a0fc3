"""Pipelines: rows on their way, described. Nothing runs before somebody asks for rows, or writes them."""

from __future__ import annotations

import inspect
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from . import _functions as functions
from . import _show
from ._batches import Format, given_as, wanted
from ._batches import rows_of as rows_in
from ._errors import InvalidError, PeltonError
from ._expressions import Expr, Literal, Tree, named, types_of
from ._run import Building, Execution, error_policy, rows_of
from ._service import BoundMethod, Duration, FunctionService, Method, Service, service_name
from ._types import SchemaLike, schema, seconds, show

if TYPE_CHECKING:
    import pandas

#: So many rows are looked at where the columns that a function gives are learnt.
_LEARN_FROM = 8
#: And so many batches of them, if those before gave nothing.
_LEARN_TRIES = 16


class Node:
    """A step of a pipeline."""

    #: Whether its columns are known only once something was read.
    reads_to_know = False

    @cached_property
    def columns(self) -> pa.Schema:
        """The columns that it gives."""
        raise NotImplementedError

    def put(self, building: Building) -> int:
        """Puts it into a plan, and returns its number there."""
        raise NotImplementedError


@dataclass(eq=False)
class Call(Node):
    """A method of a service, called for each row."""

    input: Node
    service: Service
    method: Method[Any]
    arguments: list[str]
    manner: dict[str, Any]
    name: str | None = None

    @cached_property
    def columns(self) -> pa.Schema:
        given = self.method.output
        if given is None:
            raise InvalidError(
                f"method `{self.method.name}` does not say which columns it gives; declare them, as in "
                "@pn.method(output={'embedding': pa.list_(pa.float32(), 384)})",
                fate="not-sent",
            )
        return pa.schema([*self.input.columns, *given])

    def put(self, building: Building) -> int:
        input, columns = building.node(self.input), self.input.columns
        assert self.columns is not None
        takes = self._takes(columns)
        service, service_name = building.call(self.service, self.method, takes)
        name = building.name(self.name or f"{service_name}.{self.method.name}")
        manner = dict(self.manner)
        if manner["on_error"] is None and (policy := self.service._settings.on_error) is not None:
            manner["on_error"] = error_policy(policy)
        node = building.plan.call(name, input, service, self.method.name, self.arguments, json.dumps(manner))
        if manner["on_error"] == "error-output":
            building.errors_of(self, name, node)
        return node

    def _takes(self, columns: pa.Schema) -> pa.Schema:
        what = f"call of `{self.method.name}`"
        for argument in self.arguments:
            if argument not in columns.names:
                raise InvalidError(f"{what} takes column `{argument}`, and the rows have ({show(columns)})", fate="not-sent")
        given = pa.schema([columns.field(argument) for argument in self.arguments])
        takes = self.method.input
        if takes is None:
            return given
        if len(takes) != len(given):
            raise InvalidError(
                f"{what} is given the columns ({show(given)}), and the method takes ({show(takes)}); name as many with `columns=`", fate="not-sent"
            )
        for argument, column in zip(given, takes):
            if argument.type != column.type:
                raise InvalidError(
                    f"{what}: column `{argument.name}` is {argument.type}, and the method's `{column.name}` is {column.type}; cast it, as in "
                    f".with_columns({argument.name}=pn.col({argument.name!r}).cast(...))",
                    fate="not-sent",
                )
        return takes


@dataclass(eq=False)
class Errors(Node):
    """The rows that a call could not process."""

    call: Node

    @cached_property
    def columns(self) -> pa.Schema:
        nullable = {"request"}
        names = ("operator", "kind", "message", "request", "row")
        return pa.schema([pa.field(name, pa.string(), name in nullable) for name in names])

    def put(self, building: Building) -> int:
        return building.errors_node(self.call)


@dataclass(eq=False)
class Select(Node):
    """Columns made by expressions."""

    input: Node
    made: list[tuple[str, Tree]]

    @cached_property
    def columns(self) -> pa.Schema:
        if not self.made:
            raise InvalidError(f"no column is left of ({show(self.input.columns)}); rows have at least one", fate="not-sent")
        return types_of(self.made, self.input.columns)

    def put(self, building: Building) -> int:
        input = building.node(self.input)
        assert self.columns is not None
        return building.plan.select(building.name("select"), input, [(name, json.dumps(tree)) for name, tree in self.made])


@dataclass(eq=False)
class Keep(Node):
    """The rows for which an expression is true."""

    input: Node
    condition: Expr

    @cached_property
    def columns(self) -> pa.Schema:
        condition = types_of([("condition", self.condition._tree)], self.input.columns)
        if not pa.types.is_boolean(condition.field(0).type):
            raise InvalidError(f"filter: {self.condition!r} is {condition.field(0).type}, and must be true or false", fate="not-sent")
        return self.input.columns

    def put(self, building: Building) -> int:
        input = building.node(self.input)
        assert self.columns is not None
        return building.plan.filter(building.name("filter"), input, json.dumps(self.condition._tree))


@dataclass(eq=False)
class Text(Node):
    """Documents as text, or text as chunks. The engine's own operators."""

    input: Node
    on_error: str
    #: Of chunks: the tokenizer's file, the most tokens, and those that are repeated.
    chunk: tuple[str, int, int] | None

    @cached_property
    def columns(self) -> pa.Schema:
        wanted = {"uri": pa.string(), **({"content": pa.binary()} if self.chunk is None else {"title": pa.string(), "text": pa.string()})}
        for name, type in wanted.items():
            if name not in self.input.columns.names or self.input.columns.field(name).type != type:
                raise InvalidError(
                    f"{self._kind} takes the columns ({', '.join(wanted)}), as read_files gives them, and the rows have ({show(self.input.columns)})",
                    fate="not-sent",
                )
        numbered = [] if self.chunk is None else [pa.field("chunk", pa.uint32(), False)]
        uri, title, text = (pa.field(name, pa.string(), False) for name in ("uri", "title", "text"))
        return pa.schema([uri, title, *numbered, text])

    @property
    def _kind(self) -> str:
        return "extract_text" if self.chunk is None else "chunk_text"

    def put(self, building: Building) -> int:
        assert self.columns is not None
        input, name = building.node(self.input), building.name(self._kind)
        if self.chunk is None:
            node = building.plan.extract(name, input)
        else:
            node = building.plan.chunk(name, input, *self.chunk)
        if self.on_error == "error-output":
            building.errors_of(self, name, node)
        return node


@dataclass(eq=False)
class Union(Node):
    """The rows of several."""

    inputs: list[Node]

    @cached_property
    def columns(self) -> pa.Schema:
        first = self.inputs[0].columns
        for other in self.inputs[1:]:
            if other.columns.names != first.names or other.columns.types != first.types:
                raise InvalidError(f"union of ({show(first)}) and ({show(other.columns)}): the columns must be the same", fate="not-sent")
        return first

    def put(self, building: Building) -> int:
        assert self.columns is not None
        first, *others = [building.node(node) for node in self.inputs]
        return building.plan.union(building.name("union"), first, others)


@dataclass(eq=False)
class Applied(Node):
    """A function of the user's, in worker processes."""

    input: Node
    kind: str
    function: Any
    output: pa.Schema | None
    format: Format
    batch_rows: int
    manner: dict[str, Any]
    settings: dict[str, Any]

    @cached_property
    def columns(self) -> pa.Schema:
        if self.kind == "filter":
            return self.input.columns
        return self.output if self.output is not None else self._learn()

    def _learn(self) -> pa.Schema:
        """Runs the function once, in a process of its own, on the first rows of its input."""
        learn = functions.Learn(self.function, self.kind, self.format, **{**self.settings, "replicas": 1})
        first = _Packed(self.input, _LEARN_FROM)
        answers = rows_of(Call(first, learn, learn._methods()["learn"], [functions.PACKED], _manner()), learns=True)
        found = None
        for answer in _first(answers, _LEARN_TRIES):
            told = answer.column(functions.ANSWER).drop_null()
            if len(told):
                found = pa.ipc.read_schema(pa.py_buffer(told[0].as_py()))
                break
        if found is None:
            what = functions.name_of(self.function)
            raise InvalidError(
                f"{self.kind}: `{what}` gave nothing for the first rows, so the columns that it gives are not known; declare `output=`",
                fate="not-sent",
            )
        return found

    @cached_property
    def _service(self) -> functions.Function:
        kinds = {
            "map": functions.MapRows,
            "filter": functions.KeepRows,
            "flat_map": functions.FlatMapRows,
            "map_batches": functions.MapBatches,
        }
        return kinds[self.kind](self.function, self.columns, self.format, **self.settings)

    @cached_property
    def _call(self) -> Call:
        service = self._service
        [(name, method)] = service._methods().items()
        input = _Packed(self.input, self.batch_rows) if self.kind == "map_batches" else self.input
        return Call(input, service, method, input.columns.names, self.manner, name=f"{name} {functions.name_of(self.function)}")

    def put(self, building: Building) -> int:
        called = building.node(self._call)
        plan, name = building.plan, building.name
        if self.kind == "map":
            given = [(field.name, _column(functions.GIVEN + field.name)) for field in self.columns]
            return plan.select(name("mapped"), called, given)
        if self.kind == "filter":
            kept = plan.filter(name("filtered"), called, _column(functions.GIVEN))
            return plan.select(name("kept"), kept, [(column, _column(column)) for column in self.columns.names])
        return plan.unpack(name("unpacked"), called, functions.ANSWER)


def _column(name: str) -> str:
    return json.dumps({"op": "column", "name": name})


@dataclass(eq=False)
class _Packed(Node):
    """Rows as lists of rows."""

    input: Node
    rows: int

    @cached_property
    def columns(self) -> pa.Schema:
        return functions.packed(self.input.columns, functions.PACKED)

    def put(self, building: Building) -> int:
        return building.plan.pack(building.name("packed"), building.node(self.input), functions.PACKED, self.rows)


@dataclass(eq=False)
class Table(Node):
    """Rows in memory."""

    table: pa.Table
    name: str = "table"

    @cached_property
    def columns(self) -> pa.Schema:
        return self.table.schema

    def put(self, building: Building) -> int:
        return building.plan.table(building.name(self.name), self.columns, self.table.to_batches())


@dataclass(eq=False)
class Limit(Node):
    """The first rows. They are asked for before what comes behind them starts."""

    input: Node
    rows: int

    @cached_property
    def columns(self) -> pa.Schema:
        return self.input.columns

    def put(self, building: Building) -> int:
        batches = () if building.explains else _first(rows_of(self.input, learns=building.learns), self.rows)
        table = pa.Table.from_batches(batches, self.columns)
        return building.node(Table(table, f"first {self.rows} of what is before"))


def _first(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Of these batches no more than so many rows."""
    left = rows
    try:
        while left > 0 and (batch := next(batches, None)) is not None:
            yield batch.slice(0, left)
            left -= batch.num_rows
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()


#: Aggregations by name: Arrow's, for one batch, and the one that puts those of several batches together.
_TOGETHER = {"sum": "sum", "min": "min", "max": "max", "count": "sum", "any": "any", "all": "all"}


@dataclass(eq=False)
class Grouped(Node):
    """Rows in groups, each made one. They are asked for before what comes behind them starts."""

    input: Node
    keys: list[str]
    made: dict[str, tuple[str, str]]

    @cached_property
    def columns(self) -> pa.Schema:
        columns = self.input.columns
        for column in [*self.keys, *(column for column, _ in self.made.values())]:
            if column not in columns.names:
                raise InvalidError(f"group_by: there is no column `{column}`; there are ({show(columns)})", fate="not-sent")
        return self._result(self._partial(pa.Table.from_batches([], columns))).schema

    def _parts(self) -> list[tuple[str, str]]:
        """What is kept of each batch: columns and aggregations; a mean is a sum and a count."""
        parts = [(column, how) for column, how in self.made.values() if how != "mean"]
        parts += [(column, part) for column, how in self.made.values() if how == "mean" for part in ("sum", "count")]
        return list(dict.fromkeys(parts))

    def _partial(self, rows: pa.Table, again: bool = False) -> pa.Table:
        """The groups of rows, or of such parts of earlier rows: a column for each of the parts."""
        parts = self._parts()
        asked = [(_part(c, how), _TOGETHER[how]) if again else (c, how) for c, how in parts]
        grouped = rows.group_by(self.keys).aggregate(asked)
        given = {f"{column}_{how}": _part(*part) for (column, how), part in zip(asked, parts)}
        return grouped.rename_columns([given.get(name, name) for name in grouped.schema.names])

    def _result(self, parts: pa.Table) -> pa.Table:
        columns: dict[str, Any] = {key: parts[key] for key in self.keys}
        for name, (column, how) in self.made.items():
            if how == "mean":
                sums, counts = parts[_part(column, "sum")], parts[_part(column, "count")]
                some = pc.if_else(pc.equal(counts, 0), pa.scalar(None, counts.type), counts)
                columns[name] = pc.divide(sums.cast(pa.float64()), some)
            else:
                columns[name] = parts[_part(column, how)]
        return pa.table(columns)

    def put(self, building: Building) -> int:
        assert self.columns is not None
        so_far = self._partial(pa.Table.from_batches([], self.input.columns))
        for batch in () if building.explains else rows_of(self.input, learns=building.learns):
            more = self._partial(pa.Table.from_batches([batch]))
            so_far = self._partial(pa.concat_tables([so_far, more]), again=True)
        return building.node(Table(self._result(so_far), "groups of what is before"))


def _part(column: str, how: str) -> str:
    return f"{column}\0{how}"


class GroupBy:
    """Rows in groups. Made by :meth:`Stream.group_by`."""

    def __init__(self, node: Node, keys: list[str]) -> None:
        self._node = node
        self._keys = keys

    def agg(self, **made: tuple[str, str]) -> Stream:
        """One row a group: ``agg(total=("price", "sum"), n=("price", "count"))``.

        ``sum``, ``mean``, ``min``, ``max``, ``count`` (of values), ``any``, ``all``. Groups come in no particular order.
        What is before is run first, and the groups are kept in memory.
        """
        for name, given in made.items():
            if not (isinstance(given, tuple) and len(given) == 2 and given[1] in {*_TOGETHER, "mean"}):
                known = ", ".join(sorted({*_TOGETHER, "mean"}))
                raise InvalidError(f"agg: {name}={given!r}; use (column, how), where how is one of {known}", fate="not-sent")
        return Stream(Grouped(self._node, self._keys, made))


def _manner(
    timeout: Duration | None = None,
    attempt_timeout: Duration | None = None,
    on_error: str | Mapping[str, Any] | None = None,
    ordered: bool = True,
    in_order_by: str | None = None,
    affinity_by: str | None = None,
) -> dict[str, Any]:
    return {
        "ordered": ordered,
        "timeout": seconds(timeout, "timeout"),
        "attempt_timeout": seconds(attempt_timeout, "attempt_timeout"),
        "in_order_by": in_order_by,
        "affinity_by": affinity_by,
        "on_error": None if on_error is None else error_policy(on_error),
    }


class Stream:
    """Rows on their way. Each method gives another stream; none changes this one, and none runs anything but those that say so."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def schema(self) -> pa.Schema:
        """The columns. Where a function's columns are not declared, it is run once on the first rows to learn them."""
        return self._node.columns

    def call(
        self,
        method: BoundMethod | FunctionService,
        *,
        columns: Sequence[str] | None = None,
        timeout: Duration | None = None,
        attempt_timeout: Duration | None = None,
        on_error: str | Mapping[str, Any] | None = None,
        ordered: bool = True,
        in_order_by: str | None = None,
        affinity_by: str | None = None,
    ) -> Stream:
        """Calls a service's method once for each row, and adds the columns that it gives to the row.

        :param method: a method of a service (``Embedder().embed``), or a function made a service.
        :param columns: the columns that it gets. Left out: those that it declares, by name; if it declares none, all.
        :param timeout: how long a row may take in all, as seconds or ``"30s"``.
        :param attempt_timeout: how long one try at a row may take; then it is tried elsewhere.
        :param on_error: what happens with a row that failed: ``"fail"`` (the default) fails the job, ``"error-output"`` sends it to
            :meth:`errors`, and a dict gives default values by column.
        :param ordered: whether rows leave in their order within a file. Otherwise as answers come.
        :param in_order_by: rows with the same value in this column are called one after another.
        :param affinity_by: rows with the same value in this column go to the same instance as long as it is there.
        """
        if isinstance(method, FunctionService):
            method = BoundMethod(method, method._method)
        if not isinstance(method, BoundMethod):
            raise InvalidError(f"call takes a method of a service, as in Embedder().embed, not {method!r}; {_instead(method)}", fate="not-sent")
        takes = method.method.input
        arguments = list(columns) if columns is not None else (takes.names if takes is not None else self.schema.names)
        manner = _manner(timeout, attempt_timeout, on_error, ordered, in_order_by, affinity_by)
        return Stream(Call(self._node, method.service, method.method, arguments, manner))

    def errors(self) -> Stream:
        """The rows that the step just added could not process: ``operator``, ``kind``, ``message``, ``request``, ``row``."""
        node = self._node._call if isinstance(self._node, Applied) else self._node
        if not isinstance(node, (Call, Text)):
            raise InvalidError("errors: only calls and functions have an error output; ask the stream that they gave", fate="not-sent")
        return Stream(Errors(node))

    def _apply(
        self,
        kind: str,
        function: Any,
        output: SchemaLike | None,
        format: str | None,
        batch_rows: int,
        on_error: str | Mapping[str, Any] | None,
        settings: dict[str, Any],
    ) -> Stream:
        _check_function(kind, function)
        columns = None if output is None else schema(output, f"`output` of {kind}")
        called = function.__call__ if isinstance(function, type) else function
        as_format = wanted(called, format, kind, isinstance(function, type))
        manner = _manner(on_error=on_error)
        return Stream(Applied(self._node, kind, function, columns, as_format, batch_rows, manner, settings))

    def map(
        self,
        function: Callable[[dict[str, Any]], dict[str, Any]],
        *,
        output: SchemaLike | None = None,
        on_error: str | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Stream:
        """Gives another row for each: ``function`` gets a row as a dict, and returns one.

        It runs in worker processes of its own, never in the engine. A row for which it raises is an error of that row (see ``on_error`` of
        :meth:`call`).

        :param output: the columns that it gives. Left out: they are learnt, by running it once on the first rows.
        :param settings: those of a :class:`Service`: ``replicas=4``, ``python=...``.
        """
        return self._apply("map", function, output, None, 0, on_error, settings)

    def flat_map(
        self,
        function: Callable[[dict[str, Any]], Iterable[dict[str, Any]]],
        *,
        output: SchemaLike | None = None,
        on_error: str | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Stream:
        """Gives any number of rows for each: ``function`` gets a row as a dict, and returns a list of rows, or yields them.

        See :meth:`map` for the rest.
        """
        return self._apply("flat_map", function, output, None, 0, on_error, settings)

    def map_batches(
        self,
        function: Callable[[Any], Any],
        *,
        output: SchemaLike | None = None,
        format: Format | None = None,
        batch_rows: int = 1024,
        on_error: str | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Stream:
        """Gives other rows, any number, for batches of rows.

        ``function`` may be a class: it is made once in each worker process, and the object called. It may yield several batches. It runs in worker processes of its own,
        never in the engine. If it raises, the error is one of the whole batch.

        :param output: the columns that it gives. Left out: they are learnt, by running it once on the first rows.
        :param format: what it gets (see :func:`method`).
        :param batch_rows: the most rows in a batch.
        :param settings: those of a :class:`Service`: ``replicas=4``, ``python=...``.
        """
        if batch_rows < 1:
            raise InvalidError(f"map_batches: batch_rows={batch_rows}; at least 1", fate="not-sent")
        return self._apply("map_batches", function, output, format, batch_rows, on_error, settings)

    def filter(
        self,
        condition: Expr | Callable[[dict[str, Any]], bool],
        *,
        on_error: str | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Stream:
        """Keeps the rows for which an expression is true, or for which a function that gets a row as a dict returns true.

        An expression (``pn.col("score") > 0.5``) is evaluated by the engine; a function runs in worker processes, as in :meth:`map`.
        """
        if isinstance(condition, Expr):
            from ._rewrite import Rewriting, calls

            if not calls(condition._tree):
                return Stream(Keep(self._node, condition))
            rewriting = Rewriting(self._node)
            rewriting.rewritten(condition._tree)
            kept = Keep(rewriting.node, Expr(rewriting.rewritten(condition._tree)))
            return Stream(Select(kept, rewriting.kept()))
        return self._apply("filter", condition, None, None, 0, on_error, settings)

    def extract_text(self, *, on_error: str = "fail") -> Stream:
        """The text of documents, as :func:`read_files` gives them: Markdown, HTML, plain text. Columns ``uri``, ``title``, ``text``.

        :param on_error: ``"error-output"`` sends documents that cannot be read to :meth:`errors`.
        """
        return Stream(Text(self._node, error_policy(on_error), None))

    def chunk_text(
        self, *, tokens: int = 128, overlap: int = 16, tokenizer: str | Path | None = None, on_error: str = "fail"
    ) -> Stream:
        """Chunks of text that fit an embedding model: ``uri``, ``title``, ``chunk`` (its number), ``text``.

        Takes what :func:`read_files` or :meth:`extract_text` give.

        :param tokens: the most tokens in a chunk.
        :param overlap: how many of them a chunk repeats of the one before it.
        :param tokenizer: the model's ``tokenizer.json``. Left out: that in the folder ``$PELTON_MODEL``.
        :param on_error: ``"error-output"`` sends what cannot be cut to :meth:`errors`.
        """
        if tokenizer is None:
            folder = os.environ.get("PELTON_MODEL")
            if not folder:
                raise InvalidError(
                    "chunk_text: name the model's tokenizer, as in tokenizer='all-minilm-l6-v2/tokenizer.json', or its folder in PELTON_MODEL",
                    fate="not-sent",
                )
            tokenizer = Path(folder) / "tokenizer.json"
        if not Path(tokenizer).is_file():
            raise InvalidError(f"chunk_text: there is no tokenizer {tokenizer}; name the model's tokenizer.json", fate="not-sent")
        texts = self if "content" not in self.schema.names else self.extract_text(on_error=on_error)
        return Stream(Text(texts._node, error_policy(on_error), (str(tokenizer), tokens, overlap)))

    def select(self, *columns: str | Expr, **named_columns: Expr | Literal) -> Stream:
        """These columns, and no others: by name, as expressions, or as expressions by name.

        A method of a service that gives one column may stand in an expression: ``select("uri", embedding=embedder.embed(pn.col("text")))``. It
        becomes a call before this step; the same call is made once.
        """
        return self._selected(named(columns, named_columns))

    def _selected(self, made: list[tuple[str, Tree]], keep: bool = False) -> Stream:
        from ._rewrite import Rewriting, calls

        node, kept = self._node, [(name, of_column(name)) for name in self.schema.names] if keep else []
        if any(calls(tree) for _, tree in made):
            rewriting = Rewriting(node)
            # All calls first: they may give the columns other names for as long as they last.
            for _, tree in made:
                rewriting.rewritten(tree)
            made = [(name, rewriting.rewritten(tree)) for name, tree in made]
            node, kept = rewriting.node, rewriting.kept() if keep else []
        return Stream(Select(node, list({**dict(kept), **dict(made)}.items()) if keep else made))

    def with_columns(self, *columns: Expr, **named_columns: Expr | Literal) -> Stream:
        """All columns, and these; one of the same name is replaced."""
        return self._selected(named(columns, named_columns), keep=True)

    def drop(self, *columns: str) -> Stream:
        """All columns but these."""
        self._check_columns("drop", columns)
        return Stream(Select(self._node, [(name, of_column(name)) for name in self.schema.names if name not in columns]))

    def rename(self, names: Mapping[str, str]) -> Stream:
        """Columns under other names: old to new."""
        self._check_columns("rename", names)
        return Stream(Select(self._node, [(names.get(name, name), of_column(name)) for name in self.schema.names]))

    def _check_columns(self, what: str, columns: Iterable[str]) -> None:
        for column in columns:
            if column not in self.schema.names:
                raise InvalidError(f"{what}: there is no column `{column}`; there are ({show(self.schema)})", fate="not-sent")

    def union(self, *others: Stream) -> Stream:
        """The rows of this stream and of others with the same columns."""
        return Stream(Union([self._node, *(other._node for other in others)]))

    def limit(self, rows: int) -> Stream:
        """The first rows, and no more: what comes before is ended once there are so many.

        Where something follows, these rows are asked for first, and kept in memory.
        """
        if rows < 0:
            raise InvalidError(f"limit({rows}): at least 0", fate="not-sent")
        return Stream(Limit(self._node, rows))

    def group_by(self, *columns: str) -> GroupBy:
        """Rows with the same values in these columns as groups, for :meth:`GroupBy.agg`."""
        return GroupBy(self._node, list(columns))

    # Running it.

    def iter_batches(self, *, format: Format = "arrow", timeout: float | None = None) -> Iterator[Any]:
        """Runs the pipeline, and gives its rows as they come, batch by batch.

        The pipeline runs ahead by a bounded number of batches. Leaving the loop, closing the iterator or Ctrl-C ends it and all its processes.

        :param timeout: after so many seconds without any rows, TimeoutError is raised.
        """
        batches = self._batches(timeout)
        if format == "arrow":
            return batches
        return _converted(batches, format)

    def _batches(self, timeout: float | None = None, shows: bool = False) -> Iterator[pa.RecordBatch]:
        if isinstance(self._node, Limit):
            return _first(rows_of(self._node.input, timeout, shows=shows), self._node.rows)
        return rows_of(self._node, timeout, shows=shows)

    def iter_rows(self, *, timeout: float | None = None) -> Iterator[dict[str, Any]]:
        """The same, row by row, as dicts."""
        batches = self._batches(timeout)
        try:
            for batch in batches:
                yield from rows_in(batch)
        finally:
            batches.close()  # type: ignore[attr-defined]

    def take(self, rows: int = 20, timeout: float | None = None) -> list[dict[str, Any]]:
        """Runs the pipeline until there are so many rows, and ends it.

        :param timeout: after so many seconds without any rows, TimeoutError is raised.
        """
        return [row for batch in self.limit(rows)._batches(timeout) for row in rows_in(batch)]

    def _preview(self, rows: int, timeout: float) -> tuple[list[dict[str, Any]], str]:
        """The first rows, or as many of them as come in so many seconds; and what to say of it."""
        until, found = time.monotonic() + timeout, list[dict[str, Any]]()
        batches = self.limit(rows)._batches(timeout)
        try:
            for batch in batches:
                found += rows_in(batch)
                if time.monotonic() >= until:
                    break
        except TimeoutError:
            pass
        finally:
            batches.close()  # type: ignore[attr-defined]
        late = len(found) < rows and time.monotonic() >= until
        return found, f"({len(found)} rows{f', and no more within {timeout:g} s' if late else ''})"

    def to_arrow(self) -> pa.Table:
        """Runs the pipeline, and gives all its rows."""
        return pa.Table.from_batches(self._batches(shows=True), self.schema)

    def to_pandas(self) -> pandas.DataFrame:
        """Runs the pipeline, and gives all its rows."""
        table = self.to_arrow().combine_chunks()
        batches = table.to_batches()
        return given_as(batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema), "pandas")

    def to_pylist(self) -> list[dict[str, Any]]:
        """Runs the pipeline, and gives all its rows, as dicts."""
        return [row for batch in self._batches(shows=True) for row in rows_in(batch)]

    def count(self) -> int:
        """Runs the pipeline, and counts its rows."""
        return sum(batch.num_rows for batch in self._batches(shows=True))

    def show(self, rows: int = 10, timeout: float = 60.0) -> None:
        """Runs the pipeline for the first rows, and prints them; in a notebook, shows them as a table, with images.

        :param timeout: after so many seconds it is ended, and what came until then is shown.
        """
        _show.show(self.schema, *self._preview(rows, timeout))

    # Writing it.

    def write_parquet(
        self,
        folder: str | Path,
        *,
        errors: Stream | None = None,
        state: str | Path | None = None,
        job: str | None = None,
        fresh: bool = False,
        checkpoint_interval: Duration = 5.0,
    ) -> Summary:
        """Runs the pipeline, and writes its rows to Parquet files of a folder, exactly once.

        Files appear as checkpoints complete. Killed at any moment and started again, the same program goes on where it was, and each row is
        there once; when it had finished, only files that are new are read. Ctrl-C lets services finish what they hold, and writes a checkpoint.

        :param errors: error rows, written beside as JSON lines (``errors-*``). Error outputs that nothing reads are written there in any case.
        :param state: where checkpoints and logs are kept (``FOLDER/.pelton``).
        :param job: what the job is called in ``pelton status``. Left out: the folder's name.
        :param fresh: begin anew, whatever checkpoints there are. Files that are there stay.
        :param checkpoint_interval: from checkpoint to checkpoint.
        """
        return self._write(_to_files("write_parquet", folder), str(folder), errors, state, job, fresh, checkpoint_interval)

    def write_json(
        self,
        folder: str | Path,
        *,
        errors: Stream | None = None,
        state: str | Path | None = None,
        job: str | None = None,
        fresh: bool = False,
        checkpoint_interval: Duration = 5.0,
    ) -> Summary:
        """The same, as lines of JSON. See :meth:`write_parquet`."""
        return self._write(_to_files("write_json", folder), str(folder), errors, state, job, fresh, checkpoint_interval)

    def write_postgres(
        self,
        connection: str,
        table: str,
        *,
        state: str | Path,
        job: str | None = None,
        fresh: bool = False,
        checkpoint_interval: Duration = 5.0,
    ) -> Summary:
        """Runs the pipeline, and writes its rows to a table of PostgreSQL, exactly once.

        :param connection: ``postgresql://USER:PASSWORD@HOST:PORT/DATABASE``.
        :param table: it has every column of the stream.
        :param state: the folder where checkpoints, logs and error rows are kept.

        See :meth:`write_parquet` for the rest.
        """

        def write(building: Building, node: int) -> None:
            building.plan.write_postgres(building.name("rows"), node, connection, table)

        return self._write(write, str(state), None, state, job or table, fresh, checkpoint_interval)

    def _write(
        self,
        write: Callable[[Building, int], None],
        folder: str,
        errors: Stream | None,
        state: str | Path | None,
        job: str | None,
        fresh: bool,
        checkpoint_interval: Duration,
    ) -> Summary:
        """Runs the pipeline into a sink; error rows go to files in the folder."""
        building = Building(keeps=True)
        write(building, building.node(self._node))
        if errors is not None:
            building.plan.write_json(building.name("errors"), building.node(errors._node), folder, "errors")
        building.finish(folder)
        name = service_name(job or Path(folder).resolve().name)
        wishes = {"fresh": fresh, "checkpoint_interval": seconds(checkpoint_interval, "checkpoint_interval")}
        place = Path(state) if state is not None else Path(folder) / ".pelton"
        return Summary.of(Execution(building, name, str(place), wishes, shows=True).wait())

    def explain(self) -> str:
        """The checked plan: its steps, columns, services, and guarantees.

        Runs nothing, but for functions whose columns have to be learnt. What ``limit`` and ``agg`` ask for first is shown as rows in memory.
        """
        building = Building(explains=True)
        building.plan.gather("rows", building.node(self._node))
        building.finish()
        return _show.Text(building.plan.explain("explained", json.dumps(Execution.wishes("unused"))))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.iter_rows()

    def __repr__(self) -> str:
        return f"<pelton.Stream of ({self._known_columns()}), not run yet>"

    def _repr_html_(self) -> str:
        return _show.note(f"pelton.Stream of ({self._known_columns()}), not run yet: .show() runs it for a few rows, .explain() tells what it does")

    def _known_columns(self) -> str:
        """The columns, as far as it takes no run to know them."""
        try:
            return "columns that are learnt when it runs" if _is_learnt(self._node) else show(self.schema)
        except PeltonError as e:
            return f"unknown columns: {e}"


@dataclass(frozen=True)
class Summary:
    """What a job that wrote did."""

    #: ``finished``; ``already-finished``: it had before, and there was nothing new; ``stopped``: it was interrupted.
    end: str
    #: Rows that were written in this run.
    rows: int
    #: Rows whose errors went to an error output in this run.
    errors: int
    checkpoints: int
    #: The checkpoint that it went on from.
    restored_from: int | None
    #: How often the data plane failed and was started again.
    restarts: int
    #: Files that have changed since they were read; they were not read again.
    changed: int
    seconds: float

    @staticmethod
    def of(told: dict[str, Any]) -> Summary:
        """What a job told at its end."""
        same = ("end", "checkpoints", "restored_from", "restarts", "changed", "seconds")
        errors = sum(node["errors"] for node in told["nodes"].values())
        return Summary(rows=told["nodes"]["rows"]["rows_in"], errors=errors, **{name: told[name] for name in same})

    def _repr_html_(self) -> str:
        return _show.note(repr(self))


def _to_files(write: str, folder: str | Path) -> Callable[[Building, int], None]:
    return lambda building, node: getattr(building.plan, write)(building.name("rows"), node, str(folder), "part")  # type: ignore[no-any-return]


def _instead(method: Any) -> str:
    """What somebody may have meant who calls something else than a method of a service."""
    if isinstance(method, Method):
        return f"that is the class's: make an object of it first, as in Embedder().{method.name}"
    if isinstance(method, type) and issubclass(method, Service):
        return f"that is the class: make an object of it first, and name the method, as in {method.__name__}().{next(iter(_methods(method)), 'method')}"
    if isinstance(method, Service):
        known = ", ".join(method._methods())
        return f"name its method: {known}" if known else "it has no methods; mark them with @pn.method"
    if isinstance(getattr(method, "__self__", None), Service):
        return "mark it with @pn.method"
    return "for a plain function use map or map_batches"


def _methods(service: type[Service]) -> list[str]:
    return [name for cls in reversed(service.__mro__) for name, method in vars(cls).items() if isinstance(method, Method)]


def _check_function(kind: str, function: Any) -> None:
    """Refuses what cannot be called for rows, with what to do instead."""
    if isinstance(function, (BoundMethod, Method, Service)):
        raise InvalidError(f"{kind} takes a plain function, and {function!r} is of a service: give it to .call(...)", fate="not-sent")
    if not callable(function):
        raise InvalidError(f"{kind} takes a function, not {function!r}", fate="not-sent")
    called = function.__call__ if isinstance(function, type) or not inspect.isroutine(function) else function
    what = f"{kind}: `{functions.name_of(function)}`"
    if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
        raise InvalidError(
            f"{what} is asynchronous, and functions of a pipeline are not; make it a method of a service, with @pn.method(concurrency=16)",
            fate="not-sent",
        )
    if kind in ("map", "filter") and inspect.isgeneratorfunction(called):
        raise InvalidError(f"{what} yields, and gives a generator for each row; use flat_map for any number of rows", fate="not-sent")


def _converted(batches: Iterator[pa.RecordBatch], format: Format) -> Iterator[Any]:
    try:
        for batch in batches:
            yield given_as(batch, format)
    finally:
        batches.close()  # type: ignore[attr-defined]


def _is_learnt(node: Node) -> bool:
    """Whether something has to run, or to be read, to know a node's columns."""
    if "columns" in vars(node):
        return False
    if isinstance(node, Errors):
        return False
    if isinstance(node, Applied) and node.kind != "filter":
        return node.output is None
    if node.reads_to_know:
        return True
    before: list[Node] = getattr(node, "inputs", None) or [getattr(node, "input", None)]  # type: ignore[list-item]
    before = [one for one in before if one is not None]
    return any(_is_learnt(one) for one in before)


def of_column(name: str) -> Tree:
    return {"op": "column", "name": name}
