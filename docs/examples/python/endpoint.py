"""An OpenAI-compatible endpoint in a job: documents -> embeddings and summaries -> Parquet.

    MODELS_KEY=... python endpoint.py DOCUMENTS OUTPUT http://10.0.0.7:8000
"""

from __future__ import annotations

import sys

import pelton as pn


class Models(pn.RemoteService):
    embed = pn.remote_method(input={"text": str}, output={"embedding": pn.embedding(8)})
    summarize = pn.remote_method(
        input={"text": str}, output={"summary": str}, system="Summarize in one sentence.", extra={"temperature": 0, "max_tokens": 64}
    )


def run(documents: str, output: str, url: str) -> pn.Summary:
    models = Models("openai", url, model="small", api_key_env="MODELS_KEY", attempt_timeout="20s", settings={"batch": {"rows": 16}})
    texts = pn.read_files(f"{documents}/**/*.md").extract_text()
    embedded = texts.call(models.embed, columns=["text"], on_error="error-output")
    # What a server refuses for good, or gave no answer to in all its tries, goes to errors-*.jsonl beside the output.
    return embedded.call(models.summarize, columns=["text"], on_error="error-output").drop("text").write_parquet(output)


if __name__ == "__main__":
    print(run(*sys.argv[1:4]))
