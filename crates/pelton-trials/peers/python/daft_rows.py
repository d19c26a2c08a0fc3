"""Daft's native runner: the class is made once and called with whole columns. `--how`: `thread` in the runner's own process, `process` in processes
beside it, and how many (`process,2`)."""

import os

os.environ["DAFT_PROGRESS_BAR"] = "0"
os.environ["DAFT_ANALYTICS_ENABLED"] = "0"

import daft
import digits
from daft import DataType, Series

arguments = digits.arguments()
where, _, many = (arguments.how or "thread").partition(",")


@daft.cls(use_process=where == "process", max_concurrency=int(many or 1))
class Classifier:
    def __init__(self, model):
        self.model = digits.Model(model)

    @daft.method.batch(return_dtype=DataType.int64(), batch_size=arguments.batch)
    def classify(self, pixels: Series):
        images = pixels.to_arrow().flatten().to_numpy(zero_copy_only=False).reshape(-1, digits.PIXELS)
        return Series.from_numpy(self.model.labels(images))


with digits.Timer() as timer:
    rows = daft.read_parquet(arguments.input + "/*.parquet")
    labels = Classifier(arguments.model).classify(rows["pixels"])
    rows.select("id", labels.alias("label")).write_parquet(arguments.output)
digits.report(arguments, timer.seconds)
