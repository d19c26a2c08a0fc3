"""Trains the digit classifier: scikit-learn's 8x8 digits -> a small network -> digits.onnx and digits.json.

The graph takes `pixels` (float32, [rows, 64], each 0 to 1) and gives `probabilities` (float32, [rows, 10]).
Run it in a virtual environment with requirements.txt; the same versions give the same file.
"""

import hashlib
import json
import pathlib
import platform

import numpy
import onnx
import sklearn
from onnx import TensorProto, helper, numpy_helper
from sklearn.neural_network import MLPClassifier

from split import SEED, TEST_SHARE, split

HERE = pathlib.Path(__file__).parent


def graph(model: MLPClassifier) -> onnx.ModelProto:
    nodes, weights, value = [], [], "pixels"
    for i, (matrix, bias) in enumerate(zip(model.coefs_, model.intercepts_)):
        last = i + 1 == len(model.coefs_)
        weights.append(numpy_helper.from_array(matrix.astype(numpy.float32), f"weight{i}"))
        weights.append(numpy_helper.from_array(bias.astype(numpy.float32), f"bias{i}"))
        nodes.append(helper.make_node("Gemm", [value, f"weight{i}", f"bias{i}"], [f"sum{i}"]))
        value = "probabilities" if last else f"active{i}"
        kind, options = ("Softmax", {"axis": 1}) if last else ("Relu", {})
        nodes.append(helper.make_node(kind, [f"sum{i}"], [value], **options))
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["rows", 64])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 10])
    result = helper.make_model(
        helper.make_graph(nodes, "digits", [pixels], [probabilities], weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="pelton",
    )
    onnx.checker.check_model(result, full_check=True)
    return result


def main() -> None:
    train, test = split()
    model = MLPClassifier(hidden_layer_sizes=(64,), alpha=1e-2, max_iter=1000, random_state=SEED)
    model.fit(train.pixels, train.labels)
    accuracy = float(model.score(test.pixels, test.labels))

    path = HERE / "digits.onnx"
    path.write_bytes(graph(model).SerializeToString(deterministic=True))
    facts = {
        "accuracy": round(accuracy, 4),
        "held_out": len(test.labels),
        "trained_on": len(train.labels),
        "seed": SEED,
        "test_share": TEST_SHARE,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "data": "sklearn.datasets.load_digits",
        "network": "64 pixels, 64 ReLU, 10 softmax",
        "versions": {
            "python": platform.python_version(),
            "scikit-learn": sklearn.__version__,
            "numpy": numpy.__version__,
            "onnx": onnx.__version__,
        },
    }
    (HERE / "digits.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"{path.name}: {path.stat().st_size} bytes, accuracy {accuracy:.4f} on {len(test.labels)} held-out images")
    if accuracy < 0.96:
        raise SystemExit("the accuracy is below 0.96")


if __name__ == "__main__":
    main()
