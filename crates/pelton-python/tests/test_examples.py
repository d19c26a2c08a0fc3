"""The examples in docs/examples/python do what they say, and what the same jobs do in Rust."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "docs/examples/python"
MODEL, DIGITS = os.environ.get("PELTON_MODEL", ""), os.environ.get("PELTON_DIGITS", "")


def run(*words: str | Path, **environment: str) -> str:
    command = [sys.executable, *map(str, words)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, env={**os.environ, **environment})
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def table_of(folder: Path, *order: str) -> pa.Table:
    parts = [pq.read_table(part) for part in folder.glob("part-*.parquet")]
    return pa.concat_tables(parts).sort_by([(column, "ascending") for column in order])


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for part in folder.glob("part-*.jsonl") for line in part.read_text().splitlines()]


@pytest.mark.skipif(not MODEL, reason="PELTON_MODEL names no model; `cargo xtask test` does")
def test_the_index_is_the_one_that_rust_makes(tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    for name in ("sinks.md", "objects.md"):
        (documents / name).write_text((ROOT / "docs" / name).read_text())
    said = run(EXAMPLES / "semantic_index.py", documents, tmp_path / "python", MODEL)
    assert "end='finished'" in said and "errors=0" in said
    run("-m", "pelton._command", "index", "--input", documents, "--output", tmp_path / "rust", "--model", MODEL)
    ours, theirs = (table_of(tmp_path / made, "uri", "chunk") for made in ("python", "rust"))
    assert ours.num_rows > 10 and ours.schema.names == theirs.schema.names
    for column in ("uri", "title", "chunk", "text", "model"):
        assert ours[column].to_pylist() == theirs[column].to_pylist(), column
    embeddings = ours["embedding"].combine_chunks().to_numpy_ndarray()
    expected = np.array(theirs["embedding"].to_pylist(), np.float32)
    assert embeddings.shape == expected.shape == (ours.num_rows, 384)
    np.testing.assert_allclose(embeddings, expected, atol=2e-5)
    # One index is searched as the other.
    question = "-m", "pelton._command", "search", tmp_path / "python", "how is a row written to PostgreSQL", "--model", MODEL
    assert run(*question) == run(*[tmp_path / "rust" if word == tmp_path / "python" else word for word in question])


@pytest.mark.skipif(not DIGITS, reason="PELTON_DIGITS names no images; `cargo xtask test` does")
def test_digits_are_the_ones_that_rust_reads(tmp_path: Path) -> None:
    run("-m", "pelton._command", "classify", "--input", DIGITS, "--output", tmp_path / "rust", "--model", ROOT / "models/digits/digits.onnx")
    expected = {row["uri"]: row for row in rows_of(tmp_path / "rust")}
    truth = json.loads((Path(DIGITS) / "labels.json").read_text())
    assert len(expected) == len(truth) == 449
    for kind in ("onnx", "scikit-learn"):
        said = run(EXAMPLES / "digits.py", kind, DIGITS, tmp_path / kind)
        assert "end='finished', rows=449, errors=0" in said
        found = {row["uri"]: row for row in rows_of(tmp_path / kind)}
        assert found.keys() == expected.keys()
        for uri, row in found.items():
            assert row["label"] == expected[uri]["label"], (kind, uri)
            assert abs(row["score"] - expected[uri]["score"]) < 1e-3, (kind, uri)
        right = sum(row["label"] == truth[Path(uri).name] for uri, row in found.items())
        assert right / len(truth) > 0.96


def vector(text: str) -> list[float]:
    return [len(text) / 1000, *(text.count(letter) / 100 for letter in "etaoins")]


class Server(BaseHTTPRequestHandler):
    """A server that speaks the part of OpenAI's interface that jobs use, and is not always in the mood."""

    protocol_version = "HTTP/1.1"
    asked: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    lock = threading.Lock()

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with Server.lock:
            Server.asked[self.path] += 1
            turn = Server.asked[self.path]
        if self.headers["Authorization"] != "Bearer secret" or body["model"] != "small":
            return self.answer(401, {"error": {"message": "who are you?"}})
        if turn % 4 == 2:
            return self.answer(429, {"error": {"message": "later"}}, **{"Retry-After": "0"})
        if turn % 4 == 3:
            return self.answer(503, {"error": {"message": "overloaded"}})
        if self.path == "/v1/embeddings":
            texts = body["input"]
            if any("unacceptable" in text for text in texts):
                return self.answer(400, {"error": {"message": "the input is unacceptable"}})
            data = [{"object": "embedding", "index": at, "embedding": vector(text)} for at, text in enumerate(texts)]
            return self.answer(200, {"object": "list", "data": data, "model": "small"})
        system, user = body["messages"]
        assert (self.path, system["role"], user["role"]) == ("/v1/chat/completions", "system", "user")
        assert body["temperature"] == 0 and body["max_tokens"] == 64 and system["content"] == "Summarize in one sentence."
        message = {"role": "assistant", "content": f"{len(user['content'])} characters"}
        self.answer(200, {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    def answer(self, status: int, told: dict[str, Any], **headers: str) -> None:
        with Server.lock:
            Server.answers[f"{self.path} {status}"] += 1
        body = json.dumps(told).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()
        thread.join()


def test_an_endpoint_is_called_and_what_it_refuses_is_tried_again(tmp_path: Path, server: str) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    for n in range(30):
        (documents / f"{n}.md").write_text(f"# Document {n}\n\n" + "words and more words, " * n + ("unacceptable" if n == 7 else ""))
    said = run(EXAMPLES / "endpoint.py", documents, tmp_path / "out", server, MODELS_KEY="secret")
    assert "end='finished', rows=29, errors=1" in said
    table = table_of(tmp_path / "out", "uri")
    assert sorted(table["uri"].to_pylist()) == sorted(f"{n}.md" for n in range(30) if n != 7)
    lengths = [int(summary.split()[0]) for summary in table["summary"].to_pylist()]
    embeddings = table["embedding"].combine_chunks().to_numpy_ndarray()
    np.testing.assert_allclose(embeddings[:, 0], np.array(lengths) / 1000, rtol=1e-6)
    [error] = [json.loads(line) for file in (tmp_path / "out").glob("errors-*") for line in file.read_text().splitlines()]
    assert "the input is unacceptable" in error["message"] and "7.md" in error["row"] and "secret" not in str(error)
    for path in ("/v1/embeddings", "/v1/chat/completions"):
        assert Server.answers[f"{path} 429"] and Server.answers[f"{path} 503"], Server.answers
