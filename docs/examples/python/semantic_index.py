"""A semantic index: documents -> chunks -> embeddings -> Parquet, with a sentence model that runs in Python.

    python semantic_index.py DOCUMENTS INDEX MODEL     # MODEL: the folder of all-MiniLM-L6-v2
    pelton search INDEX "a question" --model MODEL     # finds in it what it finds in an index of `pelton index`

Needs numpy, scipy, safetensors and tokenizers.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import pelton as pn

Array = NDArray[np.float32]
HEADS, EPSILON = 12, 1e-12


class MiniLm(pn.Service):
    """all-MiniLM-L6-v2 (BERT of 6 layers) in numpy. An embedding is the mean of the tokens' vectors, of length 1."""

    def __init__(self, folder: str | Path, **settings: Any) -> None:
        super().__init__(**settings)
        self.folder = Path(folder).resolve()

    def open(self, ctx: pn.Context) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        file = self.folder / "model.safetensors"
        self.weights = load_file(file)
        self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(256)
        self.tokenizer.enable_padding()
        self.version = f"{self.folder.name}@{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"

    @pn.method(max_rows=8, input={"text": str}, output={"embedding": pn.embedding(384), "model": str})
    def embed(self, batch: pa.RecordBatch) -> dict[str, Any]:
        encoded = self.tokenizer.encode_batch(batch["text"].to_pylist())
        mask = np.array([text.attention_mask for text in encoded], np.float32)
        vectors = self._encode(np.array([text.ids for text in encoded]), mask)
        means = (vectors * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
        return {"embedding": means / np.linalg.norm(means, axis=1, keepdims=True), "model": [self.version] * batch.num_rows}

    def _encode(self, ids: NDArray[np.int64], mask: Array) -> Array:
        """[texts, tokens] to [texts, tokens, 384]."""
        from scipy.special import erf

        words = self.weights["embeddings.word_embeddings.weight"][ids]
        places = self.weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self._norm(words + places + self.weights["embeddings.token_type_embeddings.weight"][0], "embeddings")
        for layer in range(6):
            at = f"encoder.layer.{layer}"
            query, key, value = (self._heads(self._dense(x, f"{at}.attention.self.{part}")) for part in ("query", "key", "value"))
            scores = query @ key.transpose(0, 1, 3, 2) / np.float32(np.sqrt(query.shape[-1])) + (mask[:, None, None, :] - 1) * 1e9
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = (shares / shares.sum(-1, keepdims=True)) @ value
            x = self._norm(x + self._dense(mixed.transpose(0, 2, 1, 3).reshape(x.shape), f"{at}.attention.output.dense"), f"{at}.attention.output")
            wide = self._dense(x, f"{at}.intermediate.dense")
            x = self._norm(x + self._dense(wide * (1 + erf(wide / np.float32(np.sqrt(2)))) / 2, f"{at}.output.dense"), f"{at}.output")
        return x

    def _dense(self, x: Array, name: str) -> Array:
        made: Array = x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return made

    def _norm(self, x: Array, name: str) -> Array:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON)
        made: Array = x * self.weights[f"{name}.LayerNorm.weight"] + self.weights[f"{name}.LayerNorm.bias"]
        return made

    def _heads(self, x: Array) -> Array:
        """[texts, tokens, 384] to [texts, heads, tokens, 32]."""
        return x.reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)


def index(documents: str, folder: str, model: str) -> pn.Summary:
    chunks = pn.read_files(f"{documents}/**/*.md").chunk_text(tokens=128, overlap=16, tokenizer=f"{model}/tokenizer.json")
    embedded = chunks.call(MiniLm(model, replicas=2).embed, ordered=False, on_error="error-output")
    return embedded.write_parquet(folder)


if __name__ == "__main__":
    print(index(*sys.argv[1:4]))
