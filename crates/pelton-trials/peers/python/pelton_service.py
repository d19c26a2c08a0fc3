"""A job whose services are called from outside, and that has no rows of its own. Runs until its standard input is closed."""

import argparse
import os
import sys

import digits
import pyarrow as pa

import pelton as pn

IMAGE = pa.list_(pa.float32(), digits.PIXELS)
IMAGES = 64


class Echo(pn.Service):
    """Returns what it gets."""

    @pn.method(input=pa.schema([pa.field("payload", pa.binary(), False)]), output={"payload": pa.binary()}, max_rows=32)
    def echo(self, batch: pa.RecordBatch):
        return batch

    @pn.method(input={"first": pa.binary(), "second": pa.binary()}, output={"buffers": int, "received": int}, max_rows=32)
    def where(self, batch: pa.RecordBatch):
        """How many columns it sees, and of how many the bytes are where the engine received them."""
        received = [segment for segment in segments() if segment]
        seen = [column.buffers()[-1] for column in batch.columns]
        there = sum(any(low <= b.address and b.address + b.size <= high for low, high in received) for b in seen)
        return {"buffers": [len(seen)] * batch.num_rows, "received": [there] * batch.num_rows}


def segments():
    """The addresses of the memory that callers write and this process reads."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            if "memfd:pelton" in line:
                low, high = line.split()[0].split("-")
                yield int(low, 16), int(high, 16)


class Digits(pn.Service):
    """A request is an image."""

    def __init__(self, model, name):
        super().__init__(name=name)
        self.path = model

    def open(self, ctx):
        self.model = digits.Model(self.path)

    @pn.method(output={"label": pa.int64()}, max_rows=256, format="numpy")
    def classify(self, columns):
        return {"label": self.model.labels(columns["pixels"])}


class ManyDigits(Digits):
    """A request is 64 images."""

    @pn.method(output={"labels": pa.list_(pa.int64(), IMAGES)}, max_rows=4, format="numpy")
    def classify(self, columns):
        labels = self.model.labels(columns["images"].reshape(-1, digits.PIXELS))
        return {"labels": labels.reshape(-1, IMAGES)}


def nothing():
    sys.stdin.read()
    yield from ()


arguments = argparse.ArgumentParser()
arguments.add_argument("--job", required=True)
arguments.add_argument("--model", required=True)
arguments = arguments.parse_args()

columns = pa.schema([pa.field("sent", pa.binary(), False), ("pixels", IMAGE), ("images", pa.list_(IMAGE, IMAGES))])
rows = pn.from_iter(nothing, columns=columns)
rows = rows.call(Digits(arguments.model, "digits").classify, columns=["pixels"])
rows = rows.call(ManyDigits(arguments.model, "digits-many").classify, columns=["images"])
rows.call(Echo().echo, columns=["sent"]).write_json(os.path.join(os.getcwd(), "rows"), job=arguments.job)
