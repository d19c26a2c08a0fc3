"""The digits, and which of them the model is never trained on."""

import typing

import numpy
from sklearn.datasets import load_digits

SEED = 7
TEST_SHARE = 0.25


class Part(typing.NamedTuple):
    indices: numpy.ndarray
    """Which of scikit-learn's 1,797 images these are."""
    pixels: numpy.ndarray
    """[rows, 64], each 0 to 1."""
    labels: numpy.ndarray


def split() -> tuple[Part, Part]:
    digits = load_digits()
    order = numpy.random.RandomState(SEED).permutation(len(digits.target))
    held_out = round(len(order) * TEST_SHARE)

    def part(indices: numpy.ndarray) -> Part:
        indices = numpy.sort(indices)
        return Part(indices, (digits.data[indices] / 16.0).astype(numpy.float32), digits.target[indices])

    return part(order[held_out:]), part(order[:held_out])
