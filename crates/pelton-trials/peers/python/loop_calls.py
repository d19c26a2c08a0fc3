"""The model in a loop, on one thread, with nothing around it: images a second, one and 64 at a time."""

import argparse
import json
import pathlib
import time

import digits
import numpy as np

arguments = argparse.ArgumentParser()
arguments.add_argument("folder", type=pathlib.Path)
arguments.add_argument("--model", required=True)
arguments.add_argument("--seconds", type=float, required=True)
arguments = arguments.parse_args()

model = digits.Model(arguments.model)
rates = {}
for name in ("one", "many"):
    pixels = np.fromfile(arguments.folder / f"{name}.f32", np.float32).reshape(-1, digits.PIXELS)
    for _ in range(100):
        model.labels(pixels)
    began, images = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < arguments.seconds:
        model.labels(pixels)
        images += len(pixels)
    rates[name] = images / passed
print(json.dumps(rates))
