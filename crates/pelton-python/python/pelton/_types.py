"""Columns, as people write them down."""

from __future__ import annotations

import datetime
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Union

import numpy as np
import pyarrow as pa

from ._errors import InvalidError
from ._tensors import type_name

#: A column's type: Arrow's own, numpy's (``np.dtype("float32")``), or a Python type such as ``str``, ``int``, ``list[float]``.
TypeLike = Any
#: Columns: a schema, or their types by name.
SchemaLike = Union[pa.Schema, Mapping[str, TypeLike], Sequence[pa.Field]]

_PLAIN: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    bytes: pa.binary(),
    datetime.datetime: pa.timestamp("us", tz="UTC"),
    datetime.date: pa.date32(),
}


def data_type(like: TypeLike, what: str = "type") -> pa.DataType:
    """Arrow's type for a type as people write it."""
    if isinstance(like, pa.DataType):
        return like
    if isinstance(like, np.dtype):
        return pa.from_numpy_dtype(like)
    if like in _PLAIN:
        return _PLAIN[like]
    origin: Any = typing.get_origin(like)
    arguments = typing.get_args(like)
    if origin in (list, Sequence) and len(arguments) == 1:
        return pa.list_(data_type(arguments[0], what))
    if origin in (Union, types.UnionType):
        inner = [a for a in arguments if a is not type(None)]
        if len(inner) == 1:
            return data_type(inner[0], what)
    raise InvalidError(
        f"{what}: {like!r} is no column type; use one of pyarrow's (pa.float32(), pa.list_(pa.float32(), 384)) or str, int, float, bool, "
        "bytes, list[...]",
        fate="not-sent",
    )


def schema(like: SchemaLike, what: str) -> pa.Schema:
    """Arrow's schema for columns as people write them."""
    if isinstance(like, pa.Schema):
        return like
    if isinstance(like, Mapping):
        return pa.schema([pa.field(name, data_type(t, f"{what}, column `{name}`")) for name, t in like.items()])
    if isinstance(like, Sequence) and all(isinstance(f, pa.Field) for f in like):
        return pa.schema(list(like))
    raise InvalidError(
        f"{what} must be a pyarrow.Schema or a dict of column types, not {type(like).__name__}", fate="not-sent"
    )


def show(columns: pa.Schema) -> str:
    """A schema in one line."""
    return ", ".join(f"{field.name}: {type_name(field.type)}" for field in columns)


def seconds(duration: float | str | datetime.timedelta | None, what: str) -> float | None:
    """A duration, given as seconds, as text such as ``"5ms"`` or ``"2m"``, or as a timedelta."""
    if duration is None:
        return None
    if isinstance(duration, datetime.timedelta):
        return duration.total_seconds()
    if isinstance(duration, (int, float)):
        return float(duration)
    text = duration.strip()
    for unit, factor in (("ms", 1e-3), ("us", 1e-6), ("s", 1.0), ("m", 60.0), ("h", 3600.0)):
        number = text.removesuffix(unit).strip()
        if text.endswith(unit) and number.replace(".", "", 1).isdigit():
            return float(number) * factor
    raise InvalidError(f'{what}: {duration!r} is no duration; use seconds, or text such as "5ms", "30s", "2m"', fate="not-sent")
