#!/usr/bin/env python3
"""Times our loader beside others on the same bucketed pictures: random batches of one bucket each, decoded.

usage: PYTHON bench_loader.py [options] BINARY    (PYTHON is of the environment that `make bench-loader` makes; BINARY is ours)

The pictures of bench_pictures.py, 10,000 files, in buckets of 256 pixels as JPEG, made by our bucket stage. Beside it: Hugging
Face datasets (an arrow memory map of the same rows) and mosaicml-streaming (MDS shards of the same rows, a stream a bucket), each
with PyTorch's DataLoader and as many workers as serve it best. Each run is a whole process that loads two epochs; the rate is that
between its first batch and its last, and the start is from the process's start to its first batch.
"""

import argparse
import collections
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

CACHE = os.path.expanduser("~/.cache/ferrotype")
BATCH, EPOCHS = 64, 2
# How many times a peer's rate ours is to be.
TARGET = 2


def batches_of(dataset_sizes, seed):
    """Row numbers of random batches, each of one bucket; what does not fill a batch is left out."""
    chance = random.Random(seed)
    by_bucket = collections.defaultdict(list)
    for row, size in enumerate(dataset_sizes):
        by_bucket[size].append(row)
    batches = []
    for rows in by_bucket.values():
        chance.shuffle(rows)
        batches += [rows[i : i + BATCH] for i in range(0, len(rows) - BATCH + 1, BATCH)]
    chance.shuffle(batches)
    return batches


def consume(epochs, started):
    """Loads all batches; prints what it took."""
    first, images, pixel_bytes = None, 0, 0
    for loader in epochs:
        for batch in loader:
            first = first or time.time()
            images += len(batch["image"])
            pixel_bytes += batch["image"].numel()
    end = time.time()
    print(json.dumps({"start": first - started, "images": images, "pixel_bytes": pixel_bytes, "seconds": end - first}))


def with_datasets(folder, workers, started):
    import datasets
    import torch

    data = datasets.load_from_disk(f"{folder}/arrow")
    sizes = data["bucket_size"][:]
    data = data.select_columns(["image", "caption"]).with_format("torch")
    load = lambda epoch: torch.utils.data.DataLoader(data, batch_sampler=batches_of(sizes, epoch), num_workers=workers)
    consume((load(epoch) for epoch in range(EPOCHS)), started)


def with_streaming(folder, workers, started):
    import numpy
    import streaming
    import torch

    class Pictures(streaming.StreamingDataset):
        def __getitem__(self, at):
            sample = super().__getitem__(at)
            return {"image": torch.from_numpy(numpy.array(sample["image"])).permute(2, 0, 1), "caption": sample["caption"]}

    streaming.base.util.clean_stale_shared_memory()
    root = f"{folder}/mds"
    streams = [streaming.Stream(local=f"{root}/{name}") for name in sorted(os.listdir(root))]
    data = Pictures(streams=streams, shuffle=True, batch_size=BATCH, batching_method="per_stream")
    load = lambda: torch.utils.data.DataLoader(data, batch_size=BATCH, num_workers=workers, drop_last=True)
    consume((load() for _ in range(EPOCHS)), started)


PEERS = {"datasets": with_datasets, "streaming": with_streaming}


def prepare(folder, paths):
    """The same rows as an arrow dataset and as MDS shards."""
    import datasets
    import streaming

    data = datasets.Dataset.from_parquet(paths, cache_dir=f"{folder}/cache").cast_column("image", datasets.Image())
    data.save_to_disk(f"{folder}/arrow")
    shutil.rmtree(f"{folder}/cache")
    data = datasets.load_from_disk(f"{folder}/arrow").cast_column("image", datasets.Image(decode=False))
    writers = {}
    for row in data:
        size = row["bucket_size"]
        if size not in writers:
            columns = {"image": "jpeg", "caption": "str"}
            writers[size] = streaming.MDSWriter(out=f"{folder}/mds/{size}", columns=columns)
        writers[size].write({"image": row["image"]["bytes"], "caption": row["caption"] or ""})
    for writer in writers.values():
        writer.finish()


def rates(found):
    return found["images"] / found["seconds"], found["start"]


def peer(name, folder, workers):
    command = [sys.executable, os.path.abspath(__file__), "--peer", name, folder, str(workers)]
    output = subprocess.run(command + [repr(time.time())], check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def ours(binary, index, steps):
    started = time.time()
    command = [binary, "loader", index, "--bench", "--json", "--batch-size", str(BATCH), "--steps", str(steps)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    before = time.time() - started - found["seconds"]
    first = found["first_batch_seconds"]
    return {"start": before + first, "images": found["images"], "pixel_bytes": found["pixel_bytes"], "seconds": found["seconds"] - first}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", metavar="BINARY", nargs="?", default=f"{CACHE}/target/release/ferrotype")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 3], help="numbers of workers to try, once each")
    parser.add_argument("--peer", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        name, folder, workers, started = options.peer
        PEERS[name](folder, int(workers), float(started))
        return
    binary = os.path.abspath(options.binary)
    pictures = f"{CACHE}/bench-pictures"
    found = (os.path.join(below, name) for below, _, names in os.walk(pictures) for name in names)
    names = sorted(path for path in found if path.endswith((".jpg", ".png", ".webp")))
    if not names:
        sys.exit(f"{pictures} has no pictures yet: `make bench-buckets` makes them")
    with tempfile.TemporaryDirectory(prefix="bench-loader-", dir=CACHE) as folder:
        os.makedirs(f"{folder}/in")
        for number, name in enumerate(names):
            os.link(name, f"{folder}/in/{number:05}{os.path.splitext(name)[1]}")
            with open(f"{folder}/in/{number:05}.txt", "w", encoding="utf-8") as file:
                file.write(f"picture number {number} of the bench, with a caption of about as many words as one has")
        with open(f"{folder}/bench.toml", "w", encoding="utf-8") as file:
            file.write(
                f'[pipeline]\nname = "bench"\nworkdir = "{folder}/work"\n[stage.import]\nuses = "import"\nfolder = "{folder}/in"\n'
                '[stage.bucket]\nuses = "bucket"\nfrom = "import"\nmax_resolution = 256\npatch_size = 16\nformat = "jpeg"\n'
                '[stage.index]\nuses = "index"\nfrom = "bucket"\n'
            )
        subprocess.run([binary, "run", f"{folder}/bench.toml", "-q"], check=True, stdout=subprocess.DEVNULL)
        written = lambda stage: sorted(
            f"{folder}/work/stages/{stage}/{name}" for name in os.listdir(f"{folder}/work/stages/{stage}") if name.endswith(".parquet")
        )
        prepare(folder, written("bucket"))
        index = written("index")[0]
        steps = EPOCHS * len(names) // BATCH
        print(f"{os.cpu_count()} processors; {len(names):,} pictures in buckets of 256 pixels, {EPOCHS} epochs in batches of {BATCH}")
        best = {}
        for name in PEERS:
            tried = {workers: rates(peer(name, folder, workers))[0] for workers in options.workers}
            best[name] = max(tried, key=tried.get)
            print(f"  {name} with " + ", ".join(f"{workers} workers {rate:,.0f} images/s" for workers, rate in tried.items()))
        runs = {"ferrotype": lambda: ours(binary, index, steps)}
        runs |= {name: lambda name=name: peer(name, folder, best[name]) for name in PEERS}
        found = collections.defaultdict(list)
        for turn in range(options.runs):
            for name in list(runs) if turn % 2 == 0 else list(runs)[::-1]:
                found[name].append(rates(runs[name]()))
        median = lambda name, of: statistics.median(run[of] for run in found[name])
        rate, start = median("ferrotype", 0), median("ferrotype", 1)
        for name, of in found.items():
            seen = [run[0] for run in of]
            line = f"  {name:<12}{median(name, 0):>9,.0f} images/s ({min(seen):,.0f} to {max(seen):,.0f}), first batch after {median(name, 1):.2f} s"
            if name != "ferrotype":
                ratio = rate / median(name, 0)
                line += f"   ours: {ratio:.2f} times the rate (asked for {TARGET}: {'yes' if ratio >= TARGET else 'NO'}), {median(name, 1) / start:.1f} times sooner"
            print(line)


if __name__ == "__main__":
    main()
