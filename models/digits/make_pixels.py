"""Writes all digits as numbers: make_pixels.py FILE.npz, with `pixels` (float32, [1797, 64], each 0 to 1) and `labels` (int64).

They come out of the installed scikit-learn package; nothing is fetched. The held-out ones come first.
"""

import pathlib
import sys

import numpy

from split import split

if __name__ == "__main__":
    train, test = split()
    pixels = numpy.concatenate([test.pixels, train.pixels])
    labels = numpy.concatenate([test.labels, train.labels]).astype(numpy.int64)
    file = pathlib.Path(sys.argv[1])
    file.parent.mkdir(parents=True, exist_ok=True)
    numpy.savez(file, pixels=pixels, labels=labels)
