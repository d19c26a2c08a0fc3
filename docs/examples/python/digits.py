"""Handwritten digits: images -> label and score -> JSON lines, with a classifier that runs in Python.

    python digits.py onnx IMAGES OUTPUT          # onnxruntime runs models/digits/digits.onnx
    python digits.py scikit-learn IMAGES OUTPUT  # the same network, trained by scikit-learn when the service opens
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pelton as pn

MODELS = Path(__file__).resolve().parents[3] / "models/digits"
LABELS = {"label": np.dtype("int32"), "score": np.dtype("float32")}


class Classifier(pn.Service):
    """What both have in common: images to pixels, probabilities to labels."""

    def probabilities(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """[rows, 64], each 0 to 1, to [rows, 10]."""
        raise NotImplementedError

    @pn.method(max_rows=64, output=LABELS)
    def classify(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        pixels = np.stack([image.reshape(64) for image in batch["image"]]).astype(np.float32) / np.float32(255)
        probabilities = self.probabilities(pixels)
        return {"label": probabilities.argmax(1).astype(np.int32), "score": probabilities.max(1)}


class Onnx(Classifier):
    def __init__(self, model: Path = MODELS / "digits.onnx", **settings: Any) -> None:
        super().__init__(**settings)
        self.model = model

    def open(self, ctx: pn.Context) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, int(ctx.cpus))
        self.session = onnxruntime.InferenceSession(str(self.model), options, providers=["CPUExecutionProvider"])

    def probabilities(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self.session.run(["probabilities"], {"pixels": pixels})[0], np.float32)


class ScikitLearn(Classifier):
    def open(self, ctx: pn.Context) -> None:
        from sklearn.neural_network import MLPClassifier

        sys.path.append(str(MODELS))
        from split import SEED, split

        train, _ = split()
        self.network = MLPClassifier(hidden_layer_sizes=(64,), alpha=1e-2, max_iter=1000, random_state=SEED)
        self.network.fit(train.pixels, train.labels)

    def probabilities(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self.network.predict_proba(pixels), np.float32)


def classify(classifier: Classifier, images: str, output: str) -> pn.Summary:
    labels = pn.read_images(images).call(classifier.classify, columns=["image"], ordered=False, on_error="error-output")
    return labels.select("uri", "label", "score").write_json(output)


if __name__ == "__main__":
    kind, images, output = sys.argv[1:4]
    print(classify({"onnx": Onnx, "scikit-learn": ScikitLearn}[kind](), images, output))
