"""Pelton: dataflows whose model-inference steps are services inside the job.

A pipeline is described first (``pn.read_files(...)``, ``pn.from_arrow(...)``, then the methods of :class:`Stream`) and runs when rows are asked
for (``to_arrow``, ``iter_rows``, ``take``) or written. What is called for rows is a :class:`Service`: a Python process of its own.
"""

from ._batches import Format
from ._errors import (
    CancelledError,
    ConnectError,
    DeadlineError,
    DeniedError,
    InternalError,
    InvalidError,
    LimitError,
    NoProgressError,
    OutOfMemoryError,
    OverloadError,
    PeltonError,
    ProtocolError,
    ResetError,
    StorageError,
    TransientError,
    UserCodeError,
)
from ._expressions import Expr, col, lit
from ._pelton import Call, Context, __version__
from ._remote import RemoteMethod, RemoteService, remote_method
from ._service import BoundMethod, FunctionService, Method, Service, method, service
from ._sources import (
    from_arrow,
    from_iter,
    from_pandas,
    from_pylist,
    read_csv,
    read_files,
    read_images,
    read_json,
    read_lines,
    read_parquet,
)
from ._stream import GroupBy, Stream, Summary
from ._tensors import embedding, image, tensor

__all__ = [
    "BoundMethod",
    "Call",
    "CancelledError",
    "ConnectError",
    "Context",
    "DeadlineError",
    "DeniedError",
    "Expr",
    "Format",
    "FunctionService",
    "GroupBy",
    "InternalError",
    "InvalidError",
    "LimitError",
    "Method",
    "NoProgressError",
    "OutOfMemoryError",
    "OverloadError",
    "PeltonError",
    "ProtocolError",
    "RemoteMethod",
    "RemoteService",
    "ResetError",
    "Service",
    "StorageError",
    "Stream",
    "Summary",
    "TransientError",
    "UserCodeError",
    "__version__",
    "col",
    "embedding",
    "from_arrow",
    "from_iter",
    "from_pandas",
    "from_pylist",
    "image",
    "lit",
    "method",
    "read_csv",
    "read_files",
    "read_images",
    "read_json",
    "read_lines",
    "read_parquet",
    "remote_method",
    "service",
    "tensor",
]
