"""Digits as Parquet files with id and pixels, and expected.json: what classifying them must give.

The pixels come as a `fixed_size_list<float>[64]`, compressed with snappy and dictionaries, as pyarrow writes them by itself, or plain, so that the file
is as large as its rows."""

import argparse
import json
import pathlib

import digits
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

#: As many as pyarrow and Spark write by themselves would be one row group a file.
GROUP = 131_072

arguments = argparse.ArgumentParser()
arguments.add_argument("folder", type=pathlib.Path)
arguments.add_argument("--digits", required=True, help="a file of pixels, of make_pixels.py")
arguments.add_argument("--model", required=True)
arguments.add_argument("--rows", type=int, required=True)
arguments.add_argument("--files", type=int, default=1)
arguments.add_argument("--plain", action="store_true")
arguments = arguments.parse_args()

pixels = np.load(arguments.digits)["pixels"]
labels = digits.Model(arguments.model).labels(pixels)
arguments.folder.mkdir(parents=True, exist_ok=True)
schema = pa.schema([("id", pa.int64()), ("pixels", pa.list_(pa.float32(), digits.PIXELS))])
how = {"compression": "none", "use_dictionary": False} if arguments.plain else {}
expected = {"rows": arguments.rows, "ids": 0, "labels": 0}
bounds = np.linspace(0, arguments.rows, arguments.files + 1).astype(int)
for number, (begin, end) in enumerate(zip(bounds, bounds[1:])):
    with parquet.ParquetWriter(arguments.folder / f"part-{number:02}.parquet", schema, **how) as file:
        for first in range(begin, end, GROUP):
            ids = np.arange(first, min(end, first + GROUP))
            which = ids % len(pixels)
            flat = pa.FixedSizeListArray.from_arrays(pa.array(pixels[which].reshape(-1)), digits.PIXELS)
            file.write_table(pa.table([pa.array(ids), flat], schema=schema))
            expected["ids"] += int(ids.sum())
            expected["labels"] += int((labels[which] * (ids % 1009 + 1)).sum())
(arguments.folder / "expected.json").write_text(json.dumps(expected))
print(json.dumps(sum(f.stat().st_size for f in arguments.folder.glob("*.parquet"))))
