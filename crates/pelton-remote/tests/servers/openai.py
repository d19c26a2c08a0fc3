"""A LitServe server with the OpenAI-compatible embeddings and chat interfaces. Arguments: port, "embeddings" or "chat"."""

import sys
from typing import List

import litserve as ls


class Vectors(ls.LitAPI):
    """Three numbers a text: characters, bytes of UTF-8, letters e."""

    def setup(self, device):
        pass

    def decode_request(self, request) -> List[str]:
        return request.ensure_list()

    def predict(self, texts):
        return [[float(len(t)), float(len(t.encode())), float(t.count("e"))] for t in texts]

    def encode_response(self, output):
        return {"embeddings": output}


class Shout(ls.LitAPI):
    """Says the last message in capitals, word by word."""

    def setup(self, device):
        pass

    def predict(self, prompt):
        for word in prompt.messages[-1].content.split(" "):
            yield word.upper() + " "


if __name__ == "__main__":
    if sys.argv[2] == "chat":
        api = Shout(spec=ls.OpenAISpec())
    else:
        api = Vectors(spec=ls.OpenAIEmbeddingSpec())
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, num_api_servers=1)
