#!/usr/bin/env python3
"""Reads a dataset of the Hub, as anybody would: prints a line of JSON for each row, in the order in which they come.

usage: PYTHON read_published.py OWNER/NAME    (HF_ENDPOINT and HF_TOKEN say where, and who asks)
"""

import json
import sys

import datasets

dataset = datasets.load_dataset(sys.argv[1], revision="main", split="train")
for row in dataset:
    image = row.pop("image")
    row.pop("checksum", None)
    print(json.dumps({**row, "size": list(image.size), "corner": list(image.convert("RGB").getpixel((0, 0)))}))
