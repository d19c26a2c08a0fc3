"""Writes the held-out digits as PNG files, with labels.json (file name -> digit): make_images.py FOLDER [--size 8]

The images come out of the installed scikit-learn package; nothing is fetched. Needs scikit-learn only.
"""

import argparse
import json
import pathlib
import struct
import zlib

import numpy

from split import split


def png(gray: numpy.ndarray) -> bytes:
    """An 8-bit grayscale PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = gray.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in gray)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--size", type=int, default=8, help="pixels a side, a multiple of 8 (default: 8)")
    arguments = parser.parse_args()
    if arguments.size < 8 or arguments.size % 8:
        parser.error(f"--size must be a multiple of 8, not {arguments.size}")
    arguments.folder.mkdir(parents=True, exist_ok=True)

    _, test = split()
    labels = {}
    for index, pixels, label in zip(test.indices, test.pixels, test.labels):
        gray = numpy.rint(pixels.reshape(8, 8) * 255).astype(numpy.uint8)
        gray = numpy.kron(gray, numpy.ones([arguments.size // 8] * 2, dtype=numpy.uint8))
        name = f"digit-{index:04}.png"
        (arguments.folder / name).write_bytes(png(gray))
        labels[name] = int(label)
    (arguments.folder / "labels.json").write_text(json.dumps(labels, indent=0) + "\n")
    print(f"{len(labels)} images in {arguments.folder}")


if __name__ == "__main__":
    main()
