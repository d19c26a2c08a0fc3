"""What every system of `bench python` classifies digits with: the model, the files of rows, and whether what came out is right."""

import argparse
import glob
import json
import pathlib
import time

import numpy as np
import onnxruntime

#: One image: float32 pixels of 0 to 1.
PIXELS = 64


class Model:
    """The classifier on one thread. Two systems that share two cores get no more out of it with more."""

    def __init__(self, path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def labels(self, pixels):
        """The digits (int64) of images (float32, [rows, 64])."""
        return self.session.run(None, {"pixels": pixels})[0].argmax(axis=1)

    def answers(self, requests):
        """The same for requests whose bodies are images: what each answers, as bytes."""
        images = [len(body) // (4 * PIXELS) for body in requests]
        pixels = np.frombuffer(b"".join(requests), np.float32).reshape(-1, PIXELS)
        labels = self.labels(pixels)
        ends = np.cumsum(images)
        return [labels[end - count : end].tobytes() for count, end in zip(images, ends)]


def files(folder):
    return sorted(glob.glob(f"{folder}/*.parquet"))


def arguments():
    """Of a program that classifies rows of files into files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", required=True, help="a folder of Parquet files with id and pixels")
    parser.add_argument("--output", required=True, help="a folder for Parquet files with id and label, made here")
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, required=True, help="rows that the model gets at a time")
    parser.add_argument("--how", help="which way, of a system that has several")
    parser.add_argument("--folder", help="for a system's own files")
    return parser.parse_args()


def report(arguments, seconds, **more):
    """Checks the output against what the rows were made with, and tells the measurement."""
    import pyarrow.parquet as parquet

    expected = json.loads(pathlib.Path(arguments.input, "expected.json").read_text())
    found = {"rows": 0, "ids": 0, "labels": 0}
    for file in glob.glob(f"{arguments.output}/**/*.parquet", recursive=True):
        for rows in parquet.ParquetFile(file).iter_batches(columns=["id", "label"]):
            ids, labels = (rows.column(name).to_numpy() for name in ("id", "label"))
            found["rows"] += len(ids)
            found["ids"] += int(ids.sum())
            found["labels"] += int((labels * (ids % 1009 + 1)).sum())
    if found != expected:
        raise SystemExit(f"the output is {found}, and should be {expected}")
    print(json.dumps({"rows": found["rows"], "seconds": seconds, **more}), flush=True)


class Timer:
    def __enter__(self):
        self.began = time.perf_counter()
        return self

    def __exit__(self, *_):
        self.seconds = time.perf_counter() - self.began
