"""Expressions on columns. The engine evaluates them; no Python runs for them."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Iterable
from typing import Any, Union

import pyarrow as pa

from ._errors import InvalidError
from ._pelton import expression_types, field_marks
from ._types import TypeLike, data_type

Literal = Union[str, int, float, bool, bytes, None]
#: An expression as the engine reads it; and, before that, calls of services in it.
Tree = dict[str, Any]


class Expr:
    """A value for each row. Made by :func:`col` and :func:`lit`, and by operators on them."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tree: Tree, name: str | None = None) -> None:
        self._tree = tree
        self._name = name

    def alias(self, name: str) -> Expr:
        """The same under another name."""
        return Expr(self._tree, name)

    def _binary(self, op: str, other: Any, reflected: bool = False) -> Expr:
        left, right = (of(other), self) if reflected else (self, of(other))
        return Expr({"op": op, "left": left._tree, "right": right._tree}, self._name)

    def _unary(self, op: str, **more: Any) -> Expr:
        return Expr({"op": op, "of": self._tree, **more}, self._name)

    def __add__(self, other: Expr | Literal) -> Expr:
        return self._binary("add", other)

    def __radd__(self, other: Literal) -> Expr:
        return self._binary("add", other, True)

    def __sub__(self, other: Expr | Literal) -> Expr:
        return self._binary("sub", other)

    def __rsub__(self, other: Literal) -> Expr:
        return self._binary("sub", other, True)

    def __mul__(self, other: Expr | Literal) -> Expr:
        return self._binary("mul", other)

    def __rmul__(self, other: Literal) -> Expr:
        return self._binary("mul", other, True)

    def __truediv__(self, other: Expr | Literal) -> Expr:
        """Division with a fraction, also of whole numbers."""
        return self._binary("div", other)

    def __rtruediv__(self, other: Literal) -> Expr:
        return self._binary("div", other, True)

    def __mod__(self, other: Expr | Literal) -> Expr:
        """The remainder, with the sign of the dividend."""
        return self._binary("rem", other)

    def __neg__(self) -> Expr:
        return Expr(lit(0)._binary("sub", self)._tree, self._name)

    def __eq__(self, other: Expr | Literal) -> Expr:  # type: ignore[override]
        return self._binary("eq", other)

    def __ne__(self, other: Expr | Literal) -> Expr:  # type: ignore[override]
        return self._binary("ne", other)

    def __lt__(self, other: Expr | Literal) -> Expr:
        return self._binary("lt", other)

    def __le__(self, other: Expr | Literal) -> Expr:
        return self._binary("le", other)

    def __gt__(self, other: Expr | Literal) -> Expr:
        return self._binary("gt", other)

    def __ge__(self, other: Expr | Literal) -> Expr:
        return self._binary("ge", other)

    def __and__(self, other: Expr | bool) -> Expr:
        return self._binary("and", other)

    def __or__(self, other: Expr | bool) -> Expr:
        return self._binary("or", other)

    def __invert__(self) -> Expr:
        return self._unary("not")

    def __bool__(self) -> bool:
        raise InvalidError(
            "an expression on columns has no truth of its own: use & | ~ in place of `and`, `or`, `not`, and put comparisons into parentheses",
            fate="not-sent",
        )

    def is_null(self) -> Expr:
        """Whether there is no value."""
        return self._unary("is-null")

    def is_in(self, values: Iterable[Literal]) -> Expr:
        """Whether it is one of these."""
        return functools.reduce(operator.or_, (self == value for value in values), lit(False)).alias(self._name or "is_in")

    def fill_null(self, value: Literal) -> Expr:
        """The value, or this one where there is none."""
        return self._binary("coalesce", value)

    def cast(self, to: TypeLike) -> Expr:
        """As another type; a value that cannot be converted is an error.

        Bytes of image files become images (``pn.image()``), and lists of fixed size tensors (``pn.tensor``), without a copy.
        """
        type = data_type(to, "cast")
        if not isinstance(type, pa.BaseExtensionType):
            return self._unary("cast", to=str(type))
        plain = self if pa.types.is_nested(type.storage_type) else self._unary("cast", to=str(type.storage_type))
        return plain._unary("mark", marks=field_marks(pa.schema([pa.field("marked", type)])))

    def length(self) -> Expr:
        """The length of a text in bytes, or of a list."""
        return self._unary("length")

    def contains(self, text: str) -> Expr:
        """Whether a text has another one in it."""
        return self._binary("contains", text)

    def starts_with(self, text: str) -> Expr:
        """Whether a text begins with another one."""
        return self._binary("starts-with", text)

    def ends_with(self, text: str) -> Expr:
        """Whether a text ends with another one."""
        return self._binary("ends-with", text)

    def __repr__(self) -> str:
        return f"pn.Expr({_written(self._tree)})"


_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "rem": "%", "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_SIGNS |= {"and": "&", "or": "|"}


def _written(tree: Tree) -> str:
    op = tree["op"]
    if op == "call":
        return f"{tree['method'].name}({', '.join(map(_written, tree['arguments']))})"
    if op == "column":
        return f"col({tree['name']!r})"
    if op == "literal":
        return repr(tree["value"])
    if op in _SIGNS:
        return f"({_written(tree['left'])} {_SIGNS[op]} {_written(tree['right'])})"
    inner = [_written(tree[part]) for part in ("of", "left", "right") if part in tree]
    return f"{op}({', '.join(inner)})"


def col(name: str) -> Expr:
    """The value of a column."""
    return Expr({"op": "column", "name": name}, name)


def lit(value: Literal) -> Expr:
    """The same value for each row."""
    if isinstance(value, bytes) or not (value is None or isinstance(value, (str, bool, int, float))):
        raise InvalidError(f"{value!r} cannot be written into an expression; text, numbers, True, False and None can", fate="not-sent")
    return Expr({"op": "literal", "value": value})


def of(value: Any) -> Expr:
    """An expression, or a value as one."""
    return value if isinstance(value, Expr) else lit(value)


def named(given: tuple[str | Expr, ...], keywords: dict[str, Expr | Literal]) -> list[tuple[str, Tree]]:
    """Columns to be made: their names and trees."""
    columns = []
    for expression in given:
        expression = col(expression) if isinstance(expression, str) else expression
        if expression._name is None:
            raise InvalidError(f"{expression!r} has no name; give it one with .alias(...), or as a keyword", fate="not-sent")
        columns.append((expression._name, expression._tree))
    return columns + [(name, of(value)._tree) for name, value in keywords.items()]


def types_of(columns: list[tuple[str, Tree]], input: pa.Schema) -> pa.Schema:
    """The columns that expressions give for these."""
    try:
        return expression_types(input, [(name, json.dumps(tree)) for name, tree in columns])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as e:
        raise InvalidError(f"an expression's column cannot be of the type that it is cast to: {e}", fate="not-sent") from None
