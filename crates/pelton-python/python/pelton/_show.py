"""A few rows, for people."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from ._tensors import type_name

_WIDEST = 40


def table(columns: pa.Schema, rows: list[dict[str, Any]]) -> str:
    """Rows as a table of text."""
    head = [field.name for field in columns]
    types = [type_name(field.type) for field in columns]
    body = [[_cell(row[name]) for name in head] for row in rows]
    widths = [max(len(line[i]) for line in [_cut(head), _cut(types), *body]) for i in range(len(head))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths)) for line in [_cut(head), _cut(types), *body]]
    rule = "-+-".join("-" * width for width in widths)
    return "\n".join([*lines[:2], rule, *lines[2:], f"({len(rows)} rows)"])


def _cut(cells: list[str]) -> list[str]:
    return [_cell(cell) for cell in cells]


def _cell(value: Any) -> str:
    if isinstance(value, bytes):
        text = f"{len(value)} bytes"
    elif isinstance(value, np.ndarray):
        text = f"{value.dtype} array {value.shape}"
    elif hasattr(value, "mode") and hasattr(value, "size"):
        text = f"{value.mode} image {value.size[0]} x {value.size[1]}"
    elif isinstance(value, list) and len(value) > 4:
        text = f"[{', '.join(str(v) for v in value[:3])}, ...] ({len(value)})"
    else:
        text = str(value).replace("\n", "\\n")
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."
