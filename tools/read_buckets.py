#!/usr/bin/env python3
"""What other people's readers find in a bucket stage's folder and in an export of it, as JSON, for tests/e2e/other_trainers.rs.

usage: read_buckets.py BUCKET_FOLDER EXPORT_FOLDER CACHE
"""

import glob
import io
import json
import os
import sys

bucket, export, cache = sys.argv[1:]
# No network: the dataset is a folder.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import datasets
import PIL.Image
import webdataset

datasets.disable_progress_bars()
pictures = [
    {"key": row["key"], "kind": type(row["image"]).__name__, "size": list(row["image"].size), "pixel": list(row["image"].getpixel((0, 0))),
     "caption": row["caption"], "bucket_size": row["bucket_size"]}
    for row in datasets.load_dataset(bucket, split="train", cache_dir=cache)
]
samples = []
for sample in webdataset.WebDataset(sorted(glob.glob(f"{export}/*.tar")), shardshuffle=False, empty_check=False):
    image = PIL.Image.open(io.BytesIO(sample["png"]))
    meta = json.loads(sample["json"])
    samples.append({"key": meta["key"], "size": list(image.size), "caption": sample["txt"].decode(), "bucket_size": meta["bucket_size"]})
print(json.dumps({"pictures": pictures, "samples": samples}))
