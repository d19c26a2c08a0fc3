"""Batches of rows in the formats that user code may ask for, and back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import pyarrow as pa

from . import _tensors
from ._errors import InvalidError, UserCodeError
from ._tensors import type_name
from ._types import show

Format = Literal["arrow", "numpy", "pandas", "torch", "rows"]
FORMATS = get_args(Format)

#: By the beginning of an annotation, which may be a text.
_ANNOTATED: dict[str, Format] = {
    "pyarrow.lib.RecordBatch": "arrow",
    "pa.RecordBatch": "arrow",
    "pyarrow.RecordBatch": "arrow",
    "pandas.": "pandas",
    "pd.DataFrame": "pandas",
    "dict[str, numpy": "numpy",
    "dict[str, np.": "numpy",
    "dict[str, torch": "torch",
    "list[dict": "rows",
}


def wanted(function: Callable[..., Any], given: str | None, what: str, bound: bool) -> Format:
    """The format that a function takes: as it was declared, or as its first parameter is annotated; else Arrow's."""
    if given is not None:
        if given not in FORMATS:
            raise InvalidError(f"{what}: format {given!r} is not known; use one of {', '.join(FORMATS)}", fate="not-sent")
        return given  # type: ignore[return-value]
    try:
        parameters = list(inspect.signature(function).parameters.values())[1 if bound else 0 :]
    except (TypeError, ValueError):
        return "arrow"
    if not parameters or parameters[0].annotation is inspect.Parameter.empty:
        return "arrow"
    annotation = parameters[0].annotation
    text = annotation if isinstance(annotation, str) else _written(annotation)
    return next((f for start, f in _ANNOTATED.items() if text.startswith(start)), "arrow")


def _written(annotation: Any) -> str:
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        return f"{annotation.__module__}.{annotation.__qualname__}"
    return str(annotation)


def given_as(batch: pa.RecordBatch, format: Format) -> Any:
    """The rows as user code wants them. Arrow and, where there are no nulls, numbers in numpy share the engine's memory."""
    if format == "arrow":
        return batch
    if format == "rows":
        return rows_of(batch)
    if format == "pandas":
        return _frame(batch)
    arrays = {name: numpy_of(column) for name, column in zip(batch.schema.names, batch.columns)}
    if format == "numpy":
        return arrays
    import torch

    # A tensor may be written to, and what the engine shares must not be.
    return {name: torch.tensor(array) if array.dtype != object else array for name, array in arrays.items()}


def rows_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows as dicts: tensors as numpy arrays, images as ``PIL.Image``."""
    special = [name for name, type in zip(batch.schema.names, batch.schema.types) if _tensors.is_ours(type)]
    if not special:
        return batch.to_pylist()  # type: ignore[no-any-return]
    columns = [_tensors.objects_of(c) if n in special else c.to_pylist() for n, c in zip(batch.schema.names, batch.columns)]
    return [dict(zip(batch.schema.names, row)) for row in zip(*columns)]


def _frame(batch: pa.RecordBatch) -> Any:
    special = {name for name, type in zip(batch.schema.names, batch.schema.types) if _tensors.is_ours(type)}
    if not special:
        return batch.to_pandas()
    import pandas

    columns = {n: _tensors.objects_of(c) if n in special else c.to_pandas() for n, c in zip(batch.schema.names, batch.columns)}
    return pandas.DataFrame({name: pandas.Series(c, dtype=object) if name in special else c for name, c in columns.items()})


def numpy_of(column: pa.Array) -> Any:
    """A column as a numpy array: tensors and fixed-size lists of numbers have as many dimensions as they are deep."""
    if _tensors.is_ours(column.type):
        return _tensors.numpy_of(column)
    shape, values = [len(column)], column
    while pa.types.is_fixed_size_list(values.type) and values.null_count == 0:
        shape.append(values.type.list_size)
        values = values.flatten()
    if len(shape) > 1 and values.null_count == 0 and (pa.types.is_primitive(values.type)):
        return values.to_numpy(zero_copy_only=False).reshape(shape)
    return column.to_numpy(zero_copy_only=False)


def batch_of(result: Any, columns: pa.Schema, what: str) -> pa.RecordBatch:
    """What user code gave, as rows of exactly these columns."""
    if isinstance(result, pa.RecordBatch) and result.schema.equals(columns) and all(field.nullable for field in columns):
        return result
    if isinstance(result, pa.Table):
        result = result.combine_chunks()
        chunks = result.to_batches()
        result = chunks[0] if chunks else pa.RecordBatch.from_pylist([], schema=result.schema)
    if isinstance(result, pa.RecordBatch):
        return _cast({n: c for n, c in zip(result.schema.names, result.columns)}, columns, what)
    if type(result).__module__.startswith("pandas") and hasattr(result, "columns"):
        return _cast({str(name): result[name] for name in result.columns}, columns, what)
    if isinstance(result, Mapping):
        return _cast(dict(result), columns, what)
    if isinstance(result, Sequence) and not isinstance(result, (str, bytes)) and result and isinstance(result[0], Mapping):
        return _rows(result, columns, what)
    if result is None:
        raise UserCodeError(f"{what} gave None; it must return rows with the columns ({show(columns)})")
    if isinstance(result, (str, bytes)) or not hasattr(result, "__len__"):
        streams = "; a method that streams has `yield` in its own body" if inspect.isgenerator(result) else ""
        raise UserCodeError(
            f"{what} gave {a(result)}; it must return rows with the columns ({show(columns)}): a RecordBatch, Table, "
            f"DataFrame, dict of columns or list of dicts{streams}"
        )
    if len(columns) == 1:
        return _cast({columns.names[0]: result}, columns, what)
    if len(result) == 0:
        return pa.RecordBatch.from_pylist([], schema=columns)
    raise UserCodeError(
        f"{what} gave {a(result)} without column names, and its columns are ({show(columns)}); give a dict of columns"
    )


def a(value: Any) -> str:
    """The type of a value, with its article."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _rows(rows: Sequence[Any], columns: pa.Schema, what: str) -> pa.RecordBatch:
    for row in rows:
        if not isinstance(row, Mapping):
            raise UserCodeError(f"{what} gave {a(row)} among its rows; each must be a dict")
        if set(row) != set(columns.names):
            raise UserCodeError(_other_columns(what, ", ".join(map(str, row)), columns))
    return _cast({name: [row[name] for row in rows] for name in columns.names}, columns, what)


def _other_columns(what: str, given: str, columns: pa.Schema) -> str:
    return f"{what} gave the columns ({given}), and its declared output is ({show(columns)})"


def _cast(given: dict[str, Any], columns: pa.Schema, what: str) -> pa.RecordBatch:
    if set(given) != set(columns.names):
        raise UserCodeError(_other_columns(what, ", ".join(map(str, given)), columns))
    arrays = [_column(given[field.name], field, what) for field in columns]
    lengths = {len(array) for array in arrays}
    if len(lengths) > 1:
        sizes = ", ".join(f"{name}: {len(array)}" for name, array in zip(columns.names, arrays))
        raise UserCodeError(f"{what} gave columns of different lengths ({sizes})")
    try:
        return pa.RecordBatch.from_arrays(arrays, schema=columns)
    except (pa.ArrowInvalid, ValueError) as e:
        raise UserCodeError(f"{what}: {e}") from None


def _column(values: Any, field: pa.Field, what: str) -> pa.Array:
    try:
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        if not isinstance(values, pa.Array):
            values = _array(values, field.type)
        if values.type != field.type:
            values = _converted(values, field.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, TypeError, ValueError) as e:
        raise UserCodeError(f"{what}: column `{field.name}` cannot be {type_name(field.type)}: {e}") from None
    if not field.nullable and values.null_count:
        raise UserCodeError(f"{what}: column `{field.name}` has nulls, and is declared without")
    return values


def _converted(values: pa.Array, type: pa.DataType) -> pa.Array:
    if not isinstance(type, pa.BaseExtensionType):
        return values.cast(type)
    storage = values.storage if isinstance(values.type, pa.BaseExtensionType) else values
    return pa.ExtensionArray.from_storage(type, storage.cast(type.storage_type))


def _array(values: Any, type: pa.DataType | None) -> pa.Array:
    if type is None and isinstance(values, list):
        type = _tensors.learnt(values)
    if type is None and hasattr(values, "ndim") and values.ndim > 1:
        type = _tensors.learnt([values[0]]) if len(values) else None
    if type is not None and _tensors.is_ours(type):
        return _tensors.array_of(values, type)
    if hasattr(values, "detach") and hasattr(values, "cpu"):
        values = values.detach().cpu().numpy()
    if hasattr(values, "ndim") and values.ndim > 1:
        return _nested(values, type)
    if hasattr(values, "dtype") and hasattr(values, "to_numpy"):
        return pa.Array.from_pandas(values, type=type)
    return pa.array(values, type=type)


def _nested(values: Any, type: pa.DataType | None) -> pa.Array:
    """A numpy array of several dimensions as lists of fixed size."""
    array = pa.array(values.reshape(-1))
    for size in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array if type is None or array.type == type else array.cast(type)


def learnt(result: Any, what: str) -> pa.Schema:
    """The columns of what user code gave."""
    if isinstance(result, (pa.RecordBatch, pa.Table)):
        return result.schema
    if type(result).__module__.startswith("pandas") and hasattr(result, "columns"):
        return pa.RecordBatch.from_pandas(result, preserve_index=False).schema.remove_metadata()
    if isinstance(result, Mapping):
        return pa.schema([pa.field(str(name), _array(values, None).type) for name, values in result.items()])
    if isinstance(result, Sequence) and result and all(isinstance(row, Mapping) for row in result):
        names = dict.fromkeys(str(name) for row in result for name in row)
        return pa.schema([pa.field(name, _array([row.get(name) for row in result], None).type) for name in names])
    raise UserCodeError(
        f"{what} gave {a(result)}, which has no column names; return a dict of columns or rows, or declare `output=`"
    )
