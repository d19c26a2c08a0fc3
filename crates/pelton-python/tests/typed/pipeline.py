"""What users write, as type checkers see it. Checked by mypy and pyright; not run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from typing_extensions import assert_type

import pelton as pn


class Embedder(pn.Service):
    def __init__(self, model: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.model = model

    def open(self, ctx: pn.Context) -> None:
        assert_type(ctx.device, str)
        assert_type(ctx.instance, int)

    @pn.method(max_rows=32, linger="5ms", output={"embedding": pa.list_(pa.float32(), 384)})
    def embed(self, batch: pa.RecordBatch) -> dict[str, np.ndarray[Any, Any]]:
        return {"embedding": np.zeros((batch.num_rows, 384))}

    @pn.method(concurrency=8, output={"answer": str})
    async def ask(self, batch: pa.RecordBatch) -> list[str]:
        return [""] * batch.num_rows

    @pn.method(output={"word": str})
    def generate(self, batch: pa.RecordBatch) -> Iterator[dict[str, list[str]]]:
        yield {"word": ["a"]}

    @pn.method(concurrency=2, output={"word": str})
    async def generate_async(self, batch: pa.RecordBatch) -> AsyncIterator[dict[str, list[str]]]:
        yield {"word": ["a"]}

    @pn.method
    def plain(self, batch: pa.RecordBatch, call: pn.Call) -> pa.RecordBatch:
        assert_type(call.is_cancelled(), bool)
        return batch


@pn.service(output={"loud": str}, replicas=2)
def shout(batch: pa.RecordBatch) -> list[str]:
    return [str(text).upper() for text in batch["text"].to_pylist()]


class Models(pn.RemoteService):
    embed = pn.remote_method(input={"text": str}, output={"embedding": pn.embedding(384)})
    answer = pn.remote_method(input={"prompt": str}, output={"answer": str}, streams=True, extra={"temperature": 0})


def images() -> None:
    models = Models("openai", ["http://127.0.0.1:8000"], model="small", attempt_timeout="20s")
    assert_type(models.embed, pn.BoundMethod)
    photos = pn.read_images("photos/**/*.jpg", max_bytes=1 << 20)
    arrays = photos.map_batches(lambda batch: batch, format="numpy", output={"pixels": pn.tensor("uint8", (None, None, 3), dim_names=("H", "W", "C"))})
    assert_type(arrays, pn.Stream)
    assert_type(arrays.filter(pn.col("uri").is_in(["a", "b"])).select(image=pn.col("content").cast(pn.image())), pn.Stream)
    arrays.show(3, timeout=10)
    assert_type(arrays.explain(), str)
    pn.from_pylist([{"text": "a"}]).call(models.embed)


def pipeline() -> None:
    embedder = Embedder("minilm", replicas=2, timeout="30s", settings={"lease": "10s"})
    assert_type(embedder.embed, pn.BoundMethod)
    docs = pn.read_files("docs/**/*.md")
    assert_type(docs, pn.Stream)
    rows = docs.map(lambda row: {"text": row["content"].decode()}, output={"text": str})
    called = rows.call(embedder.embed, timeout="30s", on_error="error-output").call(shout, columns=["text"])
    assert_type(called.errors(), pn.Stream)
    summary = called.write_parquet("index", errors=called.errors())
    assert_type(summary, pn.Summary)
    assert_type(summary.rows, int)

    score = pn.col("score")
    assert_type(score > 0.5, pn.Expr)
    assert_type(score == 1, pn.Expr)
    kept = called.filter((score > 0.5) & ~score.is_null()).select("text", double=score * 2).with_columns(one=1)
    assert_type(kept.take(5, timeout=3.0), list[dict[str, Any]])
    assert_type(kept.to_arrow(), pa.Table)
    assert_type(kept.schema, pa.Schema)
    for row in kept.iter_rows():
        assert_type(row, dict[str, Any])
    try:
        kept.show()
    except pn.UserCodeError as e:
        assert_type(e.may_retry, bool)
