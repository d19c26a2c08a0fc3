"""A loop on one thread: reads a batch, classifies it, writes it. What all others are compared with."""

import pathlib

import digits
import pyarrow as pa
import pyarrow.parquet as parquet

arguments = digits.arguments()
pa.set_cpu_count(1)
pa.set_io_thread_count(1)
with digits.Timer() as timer:
    folder = pathlib.Path(arguments.output)
    folder.mkdir(parents=True)
    model = digits.Model(arguments.model)
    schema = pa.schema([("id", pa.int64()), ("label", pa.int64())])
    with parquet.ParquetWriter(folder / "labels.parquet", schema) as output:
        for file in digits.files(arguments.input):
            for rows in parquet.ParquetFile(file).iter_batches(arguments.batch, use_threads=False):
                pixels = rows["pixels"].flatten().to_numpy().reshape(-1, digits.PIXELS)
                output.write_batch(pa.record_batch([rows["id"], pa.array(model.labels(pixels))], schema=schema))
digits.report(arguments, timer.seconds)
