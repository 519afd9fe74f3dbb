#!/usr/bin/env python3
"""Makes picture/tests/fixtures/resize: pictures, and what img2dataset makes of them.

usage: PYTHON reference_img2dataset.py    (PYTHON is of the environment that `make bench-peers` makes)

`inputs/` holds pictures as the web has them. `outputs/NAME-MODE.png` is each of them at 64 pixels by img2dataset's own Resizer,
encoded without loss; `sizes.json` has the sizes that it gives many more, by (width, height, size, mode, only if bigger).
"""

import io
import json
import os
import random
import shutil

import cv2
import numpy
from img2dataset.resizer import Resizer

import bench_pictures

HERE = os.path.dirname(os.path.abspath(__file__))
FIXTURES = f"{HERE}/../picture/tests/fixtures/resize"
MODES = ["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"]
SIZE = 64


def inputs():
    """Name and bytes: photographs at several shapes and encodings, one in grey, one on nothing, one smaller than the target."""
    photographs = bench_pictures.photographs()
    shapes = {"wide.jpg": (240, 160), "tall.png": (90, 150), "square.webp": (130, 130), "large.jpg": (620, 410), "small.jpg": (48, 37)}
    for number, (name, size) in enumerate(shapes.items()):
        image = cv2.resize(photographs[number * 2], size, interpolation=cv2.INTER_AREA)
        yield name, cv2.imencode(os.path.splitext(name)[1], image, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
    grey = cv2.cvtColor(cv2.resize(photographs[1], (200, 150), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY)
    yield "grey.jpg", cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    image = cv2.resize(photographs[3], (120, 100), interpolation=cv2.INTER_AREA)
    alpha = numpy.zeros(image.shape[:2], numpy.uint8)
    cv2.ellipse(alpha, (60, 50), (48, 38), 0, 0, 360, 255, -1, cv2.LINE_AA)
    yield "cut-out.png", cv2.imencode(".png", numpy.dstack([image, alpha]))[1].tobytes()


def main():
    shutil.rmtree(FIXTURES, ignore_errors=True)
    for folder in ("inputs", "outputs"):
        os.makedirs(f"{FIXTURES}/{folder}")
    for name, data in inputs():
        with open(f"{FIXTURES}/inputs/{name}", "wb") as file:
            file.write(data)
        for mode in MODES[1:]:
            resizer = Resizer(SIZE, mode, False, encode_format="png", encode_quality=9)
            result, *_, fault = resizer(io.BytesIO(data))
            assert fault is None, fault
            with open(f"{FIXTURES}/outputs/{os.path.splitext(name)[0]}-{mode}.png", "wb") as file:
                file.write(result)
    chance, sizes = random.Random(7), []
    for number in range(600):
        width, height = (chance.randint(1, 300) for _ in range(2))
        size, mode, bigger = chance.choice([16, 33, 64, 100, 256]), MODES[number % 5], bool(number // 5 % 2)
        blank = cv2.imencode(".png", numpy.zeros((height, width, 3), numpy.uint8))[1].tobytes()
        _, across, down, *_, fault = Resizer(size, mode, bigger, encode_format="png", encode_quality=1)(io.BytesIO(blank))
        if fault is None:
            sizes.append([width, height, size, mode, bigger, across, down])
    with open(f"{FIXTURES}/sizes.json", "w", encoding="utf-8") as file:
        file.write("[\n" + ",\n".join(json.dumps(row) for row in sizes) + "\n]\n")
    print(f"{len(sizes)} sizes; {sum(os.path.getsize(os.path.join(at, n)) for at, _, ns in os.walk(FIXTURES) for n in ns)} bytes")


if __name__ == "__main__":
    main()
