"""Requests with images of digits, and what each must answer: FOLDER/one.f32 and one.i64, FOLDER/many.f32 and many.i64."""

import argparse
import pathlib

import digits
import numpy as np

arguments = argparse.ArgumentParser()
arguments.add_argument("folder", type=pathlib.Path)
arguments.add_argument("--digits", required=True, help="a file of pixels, of make_pixels.py")
arguments.add_argument("--model", required=True)
arguments = arguments.parse_args()

held_out = np.load(arguments.digits)
model = digits.Model(arguments.model)
for name, images in (("one", 1), ("many", 64)):
    pixels = held_out["pixels"][:images]
    found = model.labels(pixels)
    right = float((found == held_out["labels"][:images]).mean())
    if right < 0.9:
        raise SystemExit(f"the model knows {right:.2f} of the digits")
    pixels.tofile(arguments.folder / f"{name}.f32")
    found.tofile(arguments.folder / f"{name}.i64")
