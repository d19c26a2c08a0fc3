"""A few rows, for people."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

import numpy as np
import pyarrow as pa

from ._tensors import type_name
from ._watch import in_notebook

_WIDEST = 40
#: Pixels of an image in a notebook.
_WIDEST_IMAGE = 96


class Text(str):
    """A text of several lines, which a notebook or an interactive session shows as it is."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self)}</pre>"


def note(text: str) -> str:
    """A line of text in a notebook."""
    return f"<code>{html.escape(text)}</code>"


def show(columns: pa.Schema, rows: list[dict[str, Any]], said: str) -> None:
    """Shows rows, and what there is to say of them, where the program's output goes."""
    if in_notebook():
        from IPython.display import HTML, display

        display(HTML(html_table(columns, rows, said)))
    else:
        print(f"{table(columns, rows)}\n{said}")


def html_table(columns: pa.Schema, rows: list[dict[str, Any]], said: str) -> str:
    """Rows as a table in a notebook."""
    head = "".join(f"<th>{html.escape(field.name)}<br><small>{html.escape(type_name(field.type))}</small></th>" for field in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_html_cell(row[field.name])}</td>' for field in columns)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note(said)}"


def _html_cell(value: Any) -> str:
    if not (hasattr(value, "mode") and hasattr(value, "thumbnail")):
        return html.escape(_cell(value))
    small, file = value.copy(), io.BytesIO()
    small.thumbnail((_WIDEST_IMAGE, _WIDEST_IMAGE))
    small.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" title="{html.escape(_cell(value))}">'


def table(columns: pa.Schema, rows: list[dict[str, Any]]) -> str:
    """Rows as a table of text."""
    head = [field.name for field in columns]
    types = [type_name(field.type) for field in columns]
    body = [[_cell(row[name]) for name in head] for row in rows]
    widths = [max(len(line[i]) for line in [_cut(head), _cut(types), *body]) for i in range(len(head))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths)) for line in [_cut(head), _cut(types), *body]]
    rule = "-+-".join("-" * width for width in widths)
    return "\n".join([*lines[:2], rule, *lines[2:]])


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
