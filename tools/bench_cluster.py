#!/usr/bin/env python3
"""Times a stage made by a Ballista cluster on this machine beside the same stage made by one process, in turn.

usage: PYTHON bench_cluster.py [options] BINARY    (PYTHON is of the environment that `make bench-cluster` makes; BINARY has a cluster)

The pictures of bench_pictures.py, several times over, in parquet shards, to buckets of 256 pixels as JPEG: by `run`, and by `run --executor`
with as many executors of one core as there are processors. Then a merge, of samples and captions in random order. Whole processes of `run`; the
scheduler and its executors are there already. What is written is compared by the records' digests.
"""

import argparse
import collections
import glob
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

import pyarrow
import pyarrow.parquet

import bench_merge
import bench_pictures
from bench_buckets import CACHE, run


class Cluster:
    """A scheduler and its executors."""

    def __init__(self, binary, executors, folder):
        self.processes = [subprocess.Popen([binary, "scheduler", "--bind", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)]
        self.address = self.processes[0].stdout.readline().split()[-1]
        for _ in range(executors):
            command = [binary, "executor", self.address, "--cores", "1"]
            self.processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder))
            self.processes[-1].stderr.readline()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            process.terminate()
            process.wait()


def written(workdir, stage):
    records = {}
    for path in glob.glob(f"{workdir}/stages/{stage}/part-*.json"):
        with open(path, encoding="utf-8") as file:
            records[os.path.basename(path)] = [data["digest"] for data in json.load(file)["data"]]
    return records


def compare(title, binary, cluster, manifest, workdir, stage, rows, times):
    """`run` here and on the cluster, the order changing from turn to turn."""
    commands = {"one process": [], f"{len(cluster.processes) - 1} executors": ["--executor", cluster.address]}
    took, found = collections.defaultdict(list), {}
    for turn in range(times):
        for name in list(commands)[:: 1 if turn % 2 == 0 else -1]:
            shutil.rmtree(f"{workdir}/stages/{stage}", ignore_errors=True)
            took[name].append(run([binary, "run", manifest, "--stage", stage, "-q", *commands[name]]))
            found[name] = written(workdir, stage)
            if found[name] != next(iter(found.values())) or not found[name]:
                sys.exit(f"void: {name} wrote something else")
    print(f"\n{title}, {times} times in turn")
    first = statistics.median(next(iter(took.values())))
    for name, seconds in took.items():
        median = statistics.median(seconds)
        line = f"  {name:<14}{median:>8.2f} s ({min(seconds):.2f} to {max(seconds):.2f}){rows / median:>12,.0f} rows/s"
        print(line + ("" if name == "one process" else f"   {median / first:.2f} times as long"), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", metavar="BINARY", nargs="?", default=f"{CACHE}/target/release/ferrotype")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--rows", type=int, default=2_000_000, help="of either side of the merge; 0 leaves it out")
    options = parser.parse_args()
    binary = os.path.abspath(options.binary)
    pictures = f"{CACHE}/bench-pictures"
    paths = bench_pictures.make_pictures(pictures)
    paths = (paths * (options.pictures // len(paths) + 1))[: options.pictures]
    with tempfile.TemporaryDirectory(prefix="bench-cluster-", dir=CACHE) as folder, Cluster(binary, os.cpu_count(), folder) as cluster:
        os.makedirs(f"{folder}/in")
        for shard in range(options.shards):
            names = [f"{number:05}" for number in range(shard, len(paths), options.shards)]
            images = []
            for name in names:
                with open(f"{pictures}/{paths[int(name)]}", "rb") as file:
                    images.append(file.read())
            pyarrow.parquet.write_table(pyarrow.table({"id": names, "image": images, "alt": names}), f"{folder}/in/{shard:03}.parquet")
        manifest, workdir = f"{folder}/bucket.toml", f"{folder}/bucket"
        with open(manifest, "w", encoding="utf-8") as file:
            file.write(
                f'[pipeline]\nname = "bench"\nworkdir = "{workdir}"\n[stage.import]\nuses = "import"\nfiles = "{folder}/in/*.parquet"\n'
                'source = "x"\ncolumns = { key = "id", image = "image", caption = "alt" }\n'
                '[stage.bucket]\nuses = "bucket"\nfrom = "import"\nmax_resolution = 256\npatch_size = 16\nformat = "jpeg"\n'
            )
        subprocess.run([binary, "run", manifest, "--stage", "import", "-q"], check=True, stdout=subprocess.DEVNULL)
        title = f"bucket: {len(paths):,} pictures in {options.shards} shards"
        compare(title, binary, cluster, manifest, workdir, "bucket", len(paths), options.runs)
        if not options.rows:
            return
        bench_merge.make(folder, options.rows)
        manifest, workdir = f"{folder}/merge.toml", f"{folder}/merge"
        bench_merge.write_manifest(manifest, workdir, folder, "1 GB")
        for stage in ["samples", "table"]:
            subprocess.run([binary, "run", manifest, "--stage", stage, "-q"], check=True, stdout=subprocess.DEVNULL)
        title = f"merge: {options.rows:,} samples and as many captions"
        compare(title, binary, cluster, manifest, workdir, "merge", options.rows, min(options.runs, 3))


if __name__ == "__main__":
    main()
