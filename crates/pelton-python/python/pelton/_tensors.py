"""Columns of tensors, embeddings and images: what they are in Arrow, and what they are in Python.

Tensors of one shape are Arrow's canonical ``arrow.fixed_shape_tensor``, those whose shapes differ its ``arrow.variable_shape_tensor``
(https://arrow.apache.org/docs/format/CanonicalExtensions.html). An image is its encoded bytes (PNG, JPEG, ...), marked as ``pelton.image``. So
they stay what they are in Parquet, and programs that know nothing of it see lists and bytes.
"""

from __future__ import annotations

import copyreg
import io
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ._errors import InvalidError, UserCodeError
from ._pelton import field_marks


_VARIABLE = "arrow.variable_shape_tensor"


class _VariableShapeTensorType(pa.ExtensionType):  # type: ignore[misc]
    """Arrow's type for tensors of one dtype and one number of dimensions, each of a shape of its own; where Arrow has no name for it yet."""

    def __init__(self, storage: pa.DataType, serialized: bytes) -> None:
        self._serialized = serialized
        super().__init__(storage, _VARIABLE)

    def __arrow_ext_serialize__(self) -> bytes:
        return self._serialized

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> _VariableShapeTensorType:
        return cls(storage, serialized)


class ImageType(pa.ExtensionType):  # type: ignore[misc]
    """Encoded images. Made by :func:`image`."""

    def __init__(self) -> None:
        super().__init__(pa.binary(), "pelton.image")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> ImageType:
        return cls()


def _stored(value_type: pa.DataType, ndim: int) -> pa.DataType:
    return pa.struct([pa.field("data", pa.list_(value_type)), pa.field("shape", pa.list_(pa.int32(), ndim))])


for _type in (_VariableShapeTensorType(_stored(pa.float32(), 1), b"{}"), ImageType()):
    try:
        pa.register_extension_type(_type)
    except pa.ArrowKeyError:  # Another library, or an Arrow that knows it by itself, was first.
        pass


def _pickled(type: pa.DataType) -> Any:
    return _unpickled, (pa.schema([pa.field("type", type)]).serialize().to_pybytes(),)


def _unpickled(schema: bytes) -> pa.DataType:
    return pa.ipc.read_schema(pa.py_buffer(schema)).field(0).type


# Arrow's own extension types that have no class of their own in Python cannot be pickled otherwise.
copyreg.pickle(pa.BaseExtensionType, _pickled)


def tensor(dtype: Any, shape: Sequence[int | None], *, dim_names: Sequence[str] | None = None) -> pa.DataType:
    """A column of numpy arrays: ``pn.tensor("float32", (3, 224, 224))``.

    :param dtype: numpy's or Arrow's type of the elements: booleans, integers, floats.
    :param shape: of one row's array. ``None`` for a size that differs from row to row: ``pn.tensor("uint8", (None, None, 3))``.
    :param dim_names: what the dimensions are called, as in ``("C", "H", "W")``; kept with the column.
    """
    value_type = dtype if isinstance(dtype, pa.DataType) else _value_type(dtype)
    if not (pa.types.is_integer(value_type) or pa.types.is_floating(value_type) or pa.types.is_boolean(value_type)):
        raise InvalidError(f"tensor: {value_type} is no type of a tensor's elements; use booleans, integers or floats", fate="not-sent")
    sizes = list(shape)
    if not sizes or any(size is not None and (not isinstance(size, int) or size < 1) for size in sizes):
        raise InvalidError(f"tensor: shape={tuple(sizes)!r}; at least one size, each 1 or more, or None where it differs", fate="not-sent")
    if dim_names is not None and len(dim_names) != len(sizes):
        raise InvalidError(f"tensor: {len(dim_names)} names for {len(sizes)} dimensions", fate="not-sent")
    names = None if dim_names is None else list(dim_names)
    if None not in sizes:
        return pa.fixed_shape_tensor(value_type, sizes, dim_names=names)
    facts = {"dim_names": names, "uniform_shape": None if all(size is None for size in sizes) else sizes}
    serialized = json.dumps({name: fact for name, fact in facts.items() if fact is not None}).encode()
    made = _VariableShapeTensorType(_stored(value_type, len(sizes)), serialized)
    # As it comes out of any schema: an Arrow that knows the type gives its own.
    return pa.ipc.read_schema(pa.schema([pa.field("tensor", made)]).serialize()).field(0).type


def embedding(size: int, dtype: Any = "float32") -> pa.DataType:
    """A column of vectors of so many numbers: ``pn.embedding(384)``. It is a tensor of one dimension."""
    return tensor(dtype, (size,))


def image() -> pa.DataType:
    """A column of images, kept as encoded bytes and decoded where they are looked at: as ``PIL.Image`` in rows, as numpy arrays in batches.

    It takes ``PIL.Image``, numpy arrays (height x width, or with 3 or 4 channels; ``uint8``, or ``uint16`` in gray), which become PNG, and bytes
    of an image file, which stay as they are.
    """
    return ImageType()


def _value_type(dtype: Any) -> pa.DataType:
    try:
        return pa.from_numpy_dtype(np.dtype(dtype))
    except (TypeError, pa.ArrowNotImplementedError):
        raise InvalidError(f'tensor: {dtype!r} is no dtype; use one of numpy\'s, as in "float32"', fate="not-sent") from None


def type_name(type: pa.DataType) -> str:
    """A type in few words."""
    if isinstance(type, pa.FixedShapeTensorType):
        return f"tensor[{type.value_type}, ({', '.join(map(str, type.shape))})]"
    if _is_variable(type):
        shape = ", ".join("?" if size is None else str(size) for size in _sizes(type))
        return f"tensor[{_value_type_of(type)}, ({shape})]"
    return "image" if is_image(type) else str(type)


def _is_variable(type: pa.DataType) -> bool:
    return isinstance(type, pa.BaseExtensionType) and type.extension_name == _VARIABLE


def _value_type_of(type: pa.DataType) -> pa.DataType:
    return type.value_type if isinstance(type, pa.FixedShapeTensorType) else type.storage_type.field("data").type.value_type


def _sizes(type: pa.DataType) -> list[int | None]:
    """Of a tensor of variable shape; None for the sizes that differ."""
    facts = json.loads(field_marks(pa.schema([pa.field("tensor", type)])).get("ARROW:extension:metadata") or "{}")
    return facts.get("uniform_shape") or [None] * type.storage_type.field("shape").type.list_size


def is_tensor(type: pa.DataType) -> bool:
    return isinstance(type, pa.FixedShapeTensorType) or _is_variable(type)


def is_image(type: pa.DataType) -> bool:
    return isinstance(type, ImageType)


def is_ours(type: pa.DataType | None) -> bool:
    """Whether its values are no plain Python in rows."""
    return type is not None and (is_tensor(type) or is_image(type))


# Out of Arrow.


def objects_of(column: pa.Array) -> list[Any]:
    """One numpy array, or one ``PIL.Image``, a row; None where there is none."""
    if is_image(column.type):
        return [None if data is None else _opened(data) for data in column.storage.to_pylist()]
    return list(_arrays(column))


def numpy_of(column: pa.Array) -> Any:
    """All rows as one numpy array, without a copy, where they are tensors of one shape and none is missing; else an array of objects."""
    type = column.type
    if isinstance(type, pa.FixedShapeTensorType) and column.null_count == 0:
        return _whole(column)
    found = [None if o is None else np.asarray(o) for o in objects_of(column)]
    return _of_objects(found)


def _of_objects(found: Sequence[Any]) -> Any:
    objects = np.empty(len(found), dtype=object)
    for at, one in enumerate(found):
        objects[at] = one
    return objects


def _whole(column: pa.Array) -> Any:
    """Tensors of one shape, nulls as whatever stands there."""
    type = column.type
    items = column.storage.values.slice(column.offset * type.storage_type.list_size, len(column) * type.storage_type.list_size)
    array = items.to_numpy(zero_copy_only=False).reshape(len(column), *type.shape)
    if type.permutation is not None:
        array = array.transpose(0, *(1 + p for p in type.permutation))
    return array


def _arrays(column: pa.Array) -> Iterator[Any]:
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    if isinstance(column.type, pa.FixedShapeTensorType):
        whole = _whole(column)
        yield from (one if there else None for one, there in zip(whole, valid))
        return
    data, shapes = column.storage.field("data"), column.storage.field("shape")
    for row, there in enumerate(valid):
        if not there:
            yield None
            continue
        items = data[row].values.to_numpy(zero_copy_only=False)
        yield items.reshape(shapes[row].as_py())


def _opened(data: bytes) -> Any:
    image = _pillow()
    try:
        return image.open(io.BytesIO(data))
    except image.UnidentifiedImageError:
        raise UserCodeError(f"{len(data)} bytes beginning with {data[:8]!r} are no image that Pillow knows") from None


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise InvalidError(f"images need Pillow, which is not there: {sys.executable} -m pip install pillow", fate="not-sent") from None
    return Image


# Into Arrow.


def array_of(values: Any, type: pa.DataType) -> pa.Array:
    """Rows of such a type, of what user code gives for them."""
    if hasattr(values, "detach") and hasattr(values, "cpu"):
        values = values.detach().cpu().numpy()
    if is_image(type):
        return pa.ExtensionArray.from_storage(type, pa.array([_encoded(one) for one in values], pa.binary()))
    if isinstance(type, pa.FixedShapeTensorType):
        return _fixed(values, type)
    return _variable(values, type)


def _fixed(values: Any, type: pa.FixedShapeTensorType) -> pa.Array:
    # Logical and physical order of dimensions may differ.
    order = list(type.permutation) if type.permutation is not None else list(range(len(type.shape)))
    shape = tuple(type.shape[p] for p in order)
    back = [order.index(axis) for axis in range(len(order))]
    missing = None
    if not (isinstance(values, np.ndarray) and values.ndim == 1 + len(shape)):
        values = list(values)
        missing = [one is None for one in values]
        blank = np.zeros(shape, type.value_type.to_pandas_dtype())
        cells = [blank if one is None else _cell(one, type.value_type, len(shape)) for one in values]
        for one in cells:
            if one.shape != shape:
                raise ValueError(f"an array of shape {one.shape} among tensors of shape {shape}")
        values = np.stack(cells) if cells else np.empty((0, *shape), type.value_type.to_pandas_dtype())
    if values.shape[1:] != shape:
        raise ValueError(f"arrays of shape {values.shape[1:]} among tensors of shape {shape}")
    values = _as(values, type.value_type).transpose(0, *(1 + axis for axis in back))
    mask = pa.array(missing) if missing and any(missing) else None
    items = pa.array(np.ascontiguousarray(values).reshape(-1), type.value_type)
    lists = pa.FixedSizeListArray.from_arrays(items, type=type.storage_type, mask=mask)
    return pa.ExtensionArray.from_storage(type, lists)


def _variable(values: Any, type: pa.DataType) -> pa.Array:
    value_type, sizes_wanted = _value_type_of(type), _sizes(type)
    ndim = len(sizes_wanted)
    cells = [None if one is None else _cell(one, value_type, ndim) for one in values]
    for one in cells:
        if one is not None and any(want not in (None, size) for want, size in zip(sizes_wanted, one.shape)):
            raise ValueError(f"an array of shape {one.shape} among those of {type_name(type)}")
    there = [one for one in cells if one is not None]
    items = np.concatenate([one.reshape(-1) for one in there]) if there else np.empty(0, value_type.to_pandas_dtype())
    lengths = [0 if one is None else one.size for one in cells]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    data = pa.ListArray.from_arrays(offsets, pa.array(items, value_type), type=type.storage_type.field("data").type)
    sizes = np.array([[0] * ndim if one is None else one.shape for one in cells], np.int32).reshape(-1)
    shapes = pa.FixedSizeListArray.from_arrays(pa.array(sizes, pa.int32()), type=type.storage_type.field("shape").type)
    mask = pa.array([one is None for one in cells]) if len(there) < len(cells) else None
    storage = pa.StructArray.from_arrays([data, shapes], fields=list(type.storage_type), mask=mask)
    return pa.ExtensionArray.from_storage(type, storage)


def _cell(one: Any, value_type: pa.DataType, ndim: int) -> Any:
    if hasattr(one, "detach") and hasattr(one, "cpu"):
        one = one.detach().cpu().numpy()
    array = _as(one, value_type) if isinstance(one, np.ndarray) else np.asarray(one, value_type.to_pandas_dtype())
    if array.ndim != ndim:
        raise ValueError(f"an array of shape {array.shape} among tensors of {ndim} dimensions")
    return array


def _as(array: Any, value_type: pa.DataType) -> Any:
    """As the column's dtype, where that changes no kind: floats do not become integers."""
    dtype = np.dtype(value_type.to_pandas_dtype())
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise ValueError(f"an array of {array.dtype} among tensors of {dtype}; convert it with .astype")
    return array.astype(dtype, copy=False)


def _encoded(one: Any) -> bytes | None:
    if one is None or isinstance(one, bytes):
        return one
    if isinstance(one, np.ndarray):
        deep = one.ndim == 2 or (one.ndim == 3 and one.shape[2] in (3, 4))
        if not (deep and (one.dtype == np.uint8 or (one.dtype == np.uint16 and one.ndim == 2))):
            raise ValueError(
                f"an array of {one.dtype} and shape {one.shape} is no image; use uint8, height x width or with 3 or 4 channels, "
                "or declare the column as pn.tensor"
            )
        one = _pillow().fromarray(np.ascontiguousarray(one))
    if not hasattr(one, "save"):
        raise ValueError(f"a {type(one).__name__} is no image; give a PIL.Image, a numpy array or the bytes of an image file")
    file = io.BytesIO()
    one.save(file, "PNG")
    return file.getvalue()


def learnt(values: Sequence[Any]) -> pa.DataType | None:
    """The type for a column of numpy arrays or images, some of which may be None. None: they are neither."""
    there = [one for one in values if one is not None]
    if not there:
        return None
    if all(type(one).__module__.startswith("PIL.") for one in there):
        return image()
    if not all(isinstance(one, np.ndarray) and one.ndim > 0 for one in there):
        return None
    shapes, dtype = {one.shape for one in there}, np.result_type(*(one.dtype for one in there))
    if len({len(shape) for shape in shapes}) > 1 or dtype.kind not in "biuf":
        return None
    [shape, *others] = shapes
    return tensor(dtype, shape if not others and 0 not in shape else [None] * len(shape))
