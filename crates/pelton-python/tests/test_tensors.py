"""Columns of tensors, embeddings and images: through calls, functions, Parquet, and back."""

from __future__ import annotations

import builtins
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pelton as pn

IMAGES = pn.tensor("uint8", (2, 3), dim_names=("H", "W"))
RAGGED = pn.tensor("int16", (None, 2))
ROWS = [
    {"id": n, "fixed": np.arange(6, dtype="uint8").reshape(2, 3) + n, "ragged": np.full((n, 2), n, "int16"), "vector": np.full(4, n, "float32")}
    for n in range(5)
]
COLUMNS = {"id": int, "fixed": IMAGES, "ragged": RAGGED, "vector": pn.embedding(4)}


def check(rows: list[dict[str, Any]]) -> None:
    """The same values, dtypes and shapes as in ROWS."""
    assert [row["id"] for row in rows] == [row["id"] for row in ROWS]
    for row, expected in zip(rows, ROWS):
        for name in ("fixed", "ragged", "vector"):
            assert isinstance(row[name], np.ndarray)
            assert row[name].dtype == expected[name].dtype and row[name].shape == expected[name].shape
            assert np.array_equal(row[name], expected[name])


class Formats(pn.Service):
    """Gives back what it gets, in each format."""

    @pn.method(input=COLUMNS, output={"f": IMAGES, "r": RAGGED, "v": pn.embedding(4)})
    def arrow(self, batch: pa.RecordBatch) -> Any:
        return {"f": batch["fixed"], "r": batch["ragged"], "v": batch["vector"]}

    @pn.method(input=COLUMNS, output={"f": IMAGES, "r": RAGGED, "v": pn.embedding(4)}, format="numpy")
    def numpy(self, batch: dict[str, Any]) -> Any:
        assert batch["fixed"].shape[1:] == (2, 3) and batch["fixed"].dtype == np.uint8 and not batch["fixed"].flags.writeable
        assert batch["vector"].shape[1:] == (4,) and batch["ragged"].dtype == object
        return {"f": batch["fixed"], "r": batch["ragged"], "v": batch["vector"]}

    @pn.method(input=COLUMNS, output={"f": IMAGES, "r": RAGGED, "v": pn.embedding(4)})
    def pandas(self, frame: pd.DataFrame) -> Any:
        assert frame["fixed"][0].shape == (2, 3)
        return pd.DataFrame({"f": frame["fixed"], "r": frame["ragged"], "v": frame["vector"]})

    @pn.method(input=COLUMNS, output={"f": IMAGES, "r": RAGGED, "v": pn.embedding(4)}, format="rows")
    def rows(self, rows: list[dict[str, Any]]) -> Any:
        return [{"f": row["fixed"], "r": row["ragged"], "v": row["vector"]} for row in rows]


@pytest.mark.parametrize("method", ["arrow", "numpy", "pandas", "rows"])
def test_tensors_pass_a_call_in_any_format(method: str) -> None:
    called = pn.from_pylist(ROWS, columns=COLUMNS).call(getattr(Formats(), method))
    assert [field.type for field in called.schema][-3:] == [IMAGES, RAGGED, pn.embedding(4)]
    assert called.schema.field("f").type.dim_names == ["H", "W"]
    check([{"id": row["id"], "fixed": row["f"], "ragged": row["r"], "vector": row["v"]} for row in called])


def test_tensors_pass_functions_expressions_and_parquet(tmp_path: Path) -> None:
    stream = pn.from_pylist(ROWS, columns=COLUMNS).map(lambda row: row, output=COLUMNS).map_batches(lambda batch: batch)
    stream = stream.flat_map(lambda row: [row], output=COLUMNS).filter(lambda row: row["fixed"].sum() >= 0)
    stream = stream.select("id", "fixed", pn.col("ragged"), v=pn.col("vector")).rename({"v": "vector"}).filter(pn.col("id") >= 0)
    stream.write_parquet(tmp_path / "out")
    check(sorted(pn.read_parquet(tmp_path / "out").to_pylist(), key=lambda row: row["id"]))
    # And for others: Arrow's own types, over lists.
    table = pq.read_table(tmp_path / "out").sort_by("id")
    assert table["fixed"].combine_chunks().to_numpy_ndarray().shape == (5, 2, 3)
    assert table.schema.types[1:] == [IMAGES, RAGGED, pn.embedding(4)]
    frame = pn.read_parquet(tmp_path / "out").to_pandas()
    assert frame["fixed"][0].shape == (2, 3) and frame["ragged"].map(len).sum() == 10
    [batch] = pn.read_parquet(tmp_path / "out").iter_batches(format="numpy")
    assert batch["vector"].shape == (5, 4)


def test_columns_of_arrays_are_learnt_as_tensors() -> None:
    def arrays(row: dict[str, Any]) -> dict[str, Any]:
        return {"a": np.zeros((2, 2), "float32"), "b": np.zeros((row["id"] + 1, 3), "int8"), "c": Image.new("L", (4, 3)), "d": [1, 2]}

    mapped = pn.from_pylist([{"id": n} for n in range(3)]).map(arrays)
    assert mapped.schema.types == [pn.tensor("float32", (2, 2)), pn.tensor("int8", (None, None)), pn.image(), pa.list_(pa.int64())]
    last = mapped.to_pylist()[-1]
    assert last["b"].shape == (3, 3) and last["c"].size == (4, 3)
    batches = pn.from_pylist([{"id": n} for n in range(3)]).map_batches(lambda batch: {"x": np.ones((batch.num_rows, 2, 2))})
    assert batches.schema.types == [pn.tensor("float64", (2, 2))]
    assert [row["x"].shape for row in batches] == [(2, 2)] * 3


def test_missing_tensors_stay_missing() -> None:
    rows = [{"t": np.ones((2, 3), "uint8"), "r": None}, {"t": None, "r": np.ones((1, 2), "int16")}]
    stream = pn.from_pylist(rows, columns={"t": IMAGES, "r": RAGGED}).map_batches(lambda batch: batch, format="rows")
    first, second = stream.to_pylist()
    assert first["r"] is None and second["t"] is None and first["t"].sum() == 6 and second["r"].shape == (1, 2)
    [batch] = stream.iter_batches(format="numpy")
    assert batch["t"].dtype == object and batch["t"][1] is None


def test_the_order_in_memory_does_not_matter() -> None:
    wide = np.asfortranarray(np.arange(12, dtype="float32").reshape(2, 2, 3))
    called = pn.from_arrow(pa.table({"x": [0, 1]})).map_batches(lambda batch: {"t": wide}, output={"t": pn.tensor("float32", (2, 3))})
    assert np.array_equal(np.stack([row["t"] for row in called]), wide)
    # Arrow's own permutation of dimensions is followed both ways.
    swapped = pa.fixed_shape_tensor(pa.int32(), [3, 2], permutation=[1, 0])
    values = pa.ExtensionArray.from_storage(swapped, pa.array([[0, 3, 1, 4, 2, 5]], pa.list_(pa.int32(), 6)))
    stream = pn.from_arrow(pa.table({"t": values})).map(lambda row: {"t": row["t"]}, output={"t": swapped})
    assert stream.to_pylist()[0]["t"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert stream.to_arrow()["t"].combine_chunks().storage.to_pylist() == values.storage.to_pylist()


def test_each_dtype_is_kept() -> None:
    dtypes = ["bool", "int8", "uint64", "float16", "float32", "float64"]
    arrays = {dtype: np.arange(6).reshape(2, 3).astype(dtype) for dtype in dtypes}
    row = {f"{dtype} {kind}": array for dtype, array in arrays.items() for kind in ("fixed", "ragged")}
    columns = {name: pn.tensor(name.split()[0], (2, 3) if name.endswith("fixed") else (None, 3)) for name in row}
    for format in ("numpy", "rows"):
        stream = pn.from_pylist([row] * 3, columns=columns).map_batches(lambda batch: batch, format=format, output=columns)  # type: ignore[arg-type]
        for back in stream.to_pylist():
            for name, array in row.items():
                assert back[name].dtype == array.dtype and np.array_equal(back[name], array)


def test_images_are_read_looked_at_and_written(tmp_path: Path) -> None:
    for n in range(4):
        Image.new("RGB", (5 + n, 3), (n, 2 * n, 255)).save(tmp_path / f"{n}.png")
    (tmp_path / "notes.txt").write_text("no image")
    images = pn.read_images(tmp_path)
    assert images.schema == pa.schema([pa.field("uri", pa.string(), False), pa.field("image", pn.image())])

    class Sizes(pn.Service):
        @pn.method(output={"width": int, "mean": pn.embedding(3), "half": pn.image()}, format="rows")
        def rows(self, rows: list[dict[str, Any]]) -> Any:
            found = [(row["image"], np.asarray(row["image"])) for row in rows]
            return [{"width": i.width, "mean": a.mean((0, 1), "float32"), "half": i.resize((2, 2))} for i, a in found]

        @pn.method(output={"shape": pa.list_(pa.int64())}, format="numpy")
        def numpy(self, batch: dict[str, Any]) -> Any:
            return {"shape": [array.shape for array in batch["image"]]}

    sizes = Sizes()
    called = images.call(sizes.rows, columns=["image"]).call(sizes.numpy, columns=["image"])
    called.write_parquet(tmp_path / "out")
    rows = sorted(pn.read_parquet(tmp_path / "out").to_pylist(), key=lambda row: row["uri"])
    assert [row["width"] for row in rows] == [5, 6, 7, 8] and rows[3]["mean"].tolist() == [3, 6, 255]
    assert [row["shape"] for row in rows] == [[3, 5 + n, 3] for n in range(4)]
    assert [row["half"].size for row in rows] == [(2, 2)] * 4
    # The file's own bytes are what is kept.
    storage = pq.read_table(tmp_path / "out").sort_by("uri")["image"].combine_chunks().storage.to_pylist()
    assert storage == [(tmp_path / f"{n}.png").read_bytes() for n in range(4)]


@pytest.mark.parametrize(
    ("array", "mode"), [(np.arange(6, dtype="uint8").reshape(2, 3), "L"), (np.arange(24, dtype="uint8").reshape(2, 3, 4), "RGBA")]
)
def test_arrays_become_images_without_loss(array: Any, mode: str) -> None:
    stream = pn.from_pylist([{"image": array}], columns={"image": pn.image()})
    [row] = stream.to_pylist()
    assert row["image"].mode == mode and np.array_equal(np.asarray(row["image"]), array)
    deep = np.arange(6, dtype="uint16").reshape(2, 3) * 9000
    [row] = pn.from_pylist([{"image": deep}], columns={"image": pn.image()}).to_pylist()
    assert np.array_equal(np.asarray(row["image"]), deep)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((3, 2), "uint8"), r"column `t` cannot be tensor\[uint8, \(2, 3\)\]: an array of shape \(3, 2\) among tensors of shape \(2, 3\)"),
        (np.zeros((2, 3), "float32"), r"an array of float32 among tensors of uint8; convert it with .astype"),
        (np.zeros(6, "uint8"), r"an array of shape \(6,\) among tensors of 2 dimensions"),
        ("text", r"column `t` cannot be tensor"),
    ],
)
def test_arrays_that_do_not_fit_are_told(value: Any, message: str) -> None:
    with pytest.raises(pn.UserCodeError, match=message):
        pn.from_arrow(pa.table({"x": [1]})).map(lambda row: {"t": value}, output={"t": IMAGES}).to_arrow()


def test_mistakes_with_images_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = pn.from_pylist([{"image": b"no image"}], columns={"image": pn.image()})
    called = broken.map(lambda row: {"size": row["image"].size}, output={"size": pa.list_(pa.int64())}, on_error="error-output")
    assert called.count() == 0
    assert "are no image that Pillow knows" in called.errors().to_pylist()[0]["message"]
    with pytest.raises(pn.UserCodeError, match=r"float32 and shape \(2, 2\) is no image; use uint8.*or declare the column as pn.tensor"):
        pn.from_pylist([{"image": np.zeros((2, 2), "float32")}], columns={"image": pn.image()})
    with pytest.raises(pn.UserCodeError, match="a int is no image"):
        pn.from_pylist([{"image": 3}], columns={"image": pn.image()})
    with pytest.raises(pn.InvalidError, match=r"shape=\(0,\)"):
        pn.tensor("uint8", (0,))
    with pytest.raises(pn.InvalidError, match="'words' is no dtype"):
        pn.tensor("words", (2,))
    with pytest.raises(pn.InvalidError, match="cannot be of the type that it is cast to"):
        pn.from_arrow(pa.table({"x": [[1, 2]]})).select(t=pn.col("x").cast(pn.tensor("int64", (2,)))).to_arrow()
    stored = io.BytesIO()
    Image.new("L", (2, 2)).save(stored, "PNG")
    whole = pn.from_pylist([{"image": stored.getvalue()}], columns={"image": pn.image()})
    real = builtins.__import__

    def without_pillow(name: str, *rest: Any, **named: Any) -> Any:
        if name == "PIL":
            raise ModuleNotFoundError("No module named 'PIL'", name="PIL")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    # Whoever does not look at them needs nothing.
    assert whole.to_arrow().num_rows == 1
    with pytest.raises(pn.InvalidError, match=r"images need Pillow, which is not there: .*python\S* -m pip install pillow"):
        whole.to_pylist()


def test_lists_of_fixed_size_are_cast_to_tensors_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"x": pa.array([[1, 2, 3, 4]], pa.list_(pa.int32(), 4))})
    stream = pn.from_arrow(table).with_columns(t=pn.col("x").cast(pn.tensor("int32", (2, 2))))
    assert stream.to_pylist()[0]["t"].tolist() == [[1, 2], [3, 4]]
    stream.select("t").show()
    assert "tensor[int32, (2, 2)]" in (shown := capsys.readouterr().out) and "int32 array (2, 2)" in shown
