"""Pelton: `--how service` calls a method of a service, `--how map_batches` a class for each batch."""

import digits
import pyarrow as pa

import pelton as pn

arguments = digits.arguments()
OUTPUT = {"id": pa.int64(), "label": pa.int64()}


class Classifier(pn.Service):
    def __init__(self, model):
        super().__init__()
        self.path = model

    def open(self, ctx):
        self.model = digits.Model(self.path)

    @pn.method(max_rows=arguments.batch, output={"label": pa.int64()}, format="numpy")
    def classify(self, rows):
        return {"label": self.model.labels(rows["pixels"])}


class Classify:
    def __init__(self):
        self.model = digits.Model(arguments.model)

    def __call__(self, rows):
        return {"id": rows["id"], "label": self.model.labels(rows["pixels"])}


with digits.Timer() as timer:
    rows = pn.read_parquet(arguments.input)
    if arguments.how == "service":
        rows = rows.call(Classifier(arguments.model).classify, columns=["pixels"]).select("id", "label")
    else:
        rows = rows.map_batches(Classify, batch_rows=arguments.batch, format="numpy", output=OUTPUT)
    rows.write_parquet(arguments.output)
digits.report(arguments, timer.seconds)
