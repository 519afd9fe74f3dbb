#!/usr/bin/env python3
"""Reads a folder in img2dataset's layout as its users do, and prints what it found as JSON, for tests/e2e/webdataset.rs.

usage: PYTHON read_webdataset.py FOLDER
"""

import glob
import hashlib
import json
import sys

import pyarrow.parquet
import webdataset

folder = sys.argv[1]
tars = sorted(glob.glob(f"{folder}/*.tar"))
samples = [
    {
        "key": sample["__key__"],
        "parts": sorted(name for name in sample if not name.startswith("__")),
        "caption": sample["txt"].decode(),
        "meta": json.loads(sample["json"]),
        "sha256": hashlib.sha256(sample["jpg"]).hexdigest(),
    }
    for sample in webdataset.WebDataset(tars, shardshuffle=False)
]
tables = [pyarrow.parquet.read_table(path) for path in sorted(glob.glob(f"{folder}/*.parquet"))]
stats = [json.load(open(path, encoding="utf-8")) for path in sorted(glob.glob(f"{folder}/*_stats.json"))]
print(
    json.dumps(
        {
            "samples": samples,
            "columns": [f"{field.name}: {field.type}" for field in tables[0].schema],
            "rows": [row for table in tables for row in table.to_pylist()],
            "stats": stats,
        }
    )
)
