"""A KServe server (HTTP and gRPC) with a model that computes what the tests can check. Arguments: HTTP port, gRPC port."""

import sys

import numpy as np
from kserve import InferOutput, InferResponse, Model, ModelServer
from kserve.errors import InvalidInput


class Sums(Model):
    def __init__(self):
        super().__init__("sums")
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        given = {i.name: i for i in payload.inputs}
        if set(given) == {"text"}:
            # Three numbers a text: characters, bytes of UTF-8, letters e.
            texts = [t if isinstance(t, str) else t.decode() for t in given["text"].as_numpy().reshape(-1)]
            vectors = np.array([[len(t), len(t.encode()), t.count("e")] for t in texts], dtype=np.float32)
            return self.answer(payload, {"vector": ("FP32", vectors)})
        vectors, flags = given["vector"].as_numpy(), given["flag"].as_numpy().reshape(-1)
        names = [t if isinstance(t, str) else t.decode() for t in given["name"].as_numpy().reshape(-1)]
        if "bad" in names:
            raise InvalidInput("a name is bad")
        return self.answer(payload, {
            "sum": ("FP64", vectors.astype(np.float64).sum(axis=1, keepdims=True)),
            "doubled": ("FP32", vectors * 2),
            "rank": ("INT64", vectors.argmax(axis=1).astype(np.int64).reshape(-1, 1)),
            "flag": ("BOOL", np.logical_not(flags).reshape(-1, 1)),
            "name": ("BYTES", np.array([n.upper().encode() for n in names], dtype=object).reshape(-1, 1)),
        })

    def answer(self, payload, columns):
        outputs = []
        for name, (datatype, array) in columns.items():
            output = InferOutput(name=name, shape=list(array.shape), datatype=datatype)
            output.set_data_from_numpy(array, binary_data=False)
            outputs.append(output)
        return InferResponse(response_id=payload.id or "x", model_name=self.name, infer_outputs=outputs)


if __name__ == "__main__":
    http, grpc = int(sys.argv[1]), int(sys.argv[2])
    ModelServer(http_port=http, grpc_port=grpc, workers=1, enable_docs_url=False).start([Sums()])
