#!/usr/bin/env python3
"""Times our merge beside DuckDB's join of the same files, in turn.

usage: PYTHON bench_merge.py [options] BINARY    (PYTHON is of the environment that `make bench-merge` makes; BINARY is ours)

Samples with a key, a caption and other columns in shards of 100,000 rows, a table of captions of about 700 bytes in another order; each side's keys
are shuffled. Ours: the stage `merge`, which also writes the samples with their new columns. DuckDB: a LEFT JOIN, ordered as the samples lie, written as parquet
with the same compression, with the same limit of memory. Each run is a whole process; what is written is compared.
"""

import argparse
import collections
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

import numpy
import pyarrow
import pyarrow.parquet

from bench_buckets import CACHE, watched

SHARD = 100_000
SMALLEST = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c6360000000020001e221bc330000000049454e44ae426082"
)


def make(folder, rows):
    chance = numpy.random.default_rng(3)
    words = [hashlib.sha1(str(n).encode()).hexdigest()[: 3 + n % 8] for n in range(5000)]
    os.makedirs(f"{folder}/samples")
    os.makedirs(f"{folder}/table")
    keys = chance.permutation(rows)
    for number in range(0, rows, SHARD):
        part = keys[number : number + SHARD]
        table = pyarrow.table(
            {
                "id": [f"{key:09}" for key in part],
                "image": pyarrow.array([SMALLEST] * len(part), pyarrow.binary()),
                "alt": [f"alt text of picture {key}" for key in part],
            }
        )
        pyarrow.parquet.write_table(table, f"{folder}/samples/{number // SHARD:05}.parquet", compression="ZSTD")
    keys = chance.permutation(rows)
    for number in range(0, rows, SHARD):
        part = keys[number : number + SHARD]
        picks = chance.integers(0, len(words), (len(part), 110))
        long = [" ".join([str(key)] + [words[n] for n in row[:90]]) for key, row in zip(part, picks)]
        short = [" ".join([words[n] for n in row[90:]]) for row in picks]
        table = pyarrow.table({"key": [f"{key:09}" for key in part], "recaption": long, "recaption_short": short})
        pyarrow.parquet.write_table(table, f"{folder}/table/{number // SHARD:05}.parquet", compression="ZSTD")


def with_duckdb(samples, table, target, memory, temporary):
    import duckdb

    duckdb.sql(f"SET memory_limit = '{memory}'")
    duckdb.sql(f"SET temp_directory = '{temporary}'")
    duckdb.sql(f"SET threads = {os.cpu_count()}")
    duckdb.sql("SET preserve_insertion_order = false")
    duckdb.sql(
        f"""COPY (SELECT s.* EXCLUDE (filename, file_row_number), t.recaption, t.recaption_short
        FROM read_parquet('{samples}', filename = true, file_row_number = true) s LEFT JOIN read_parquet('{table}') t ON s.id = t.stem
        ORDER BY s.filename, s.file_row_number) TO '{target}' (FORMAT parquet, COMPRESSION zstd)"""
    )


def checksum(paths, names):
    """Of the rows in their order."""
    digest = hashlib.sha256()
    for path in paths:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(columns=names):
            for row in zip(*(batch.column(name).to_pylist() for name in names)):
                digest.update(repr(row).encode())
    return digest.hexdigest()


def parquet(workdir, stage):
    place = f"{workdir}/stages/{stage}"
    return [f"{place}/{name}" for name in sorted(os.listdir(place)) if name.endswith(".parquet") and "survey" not in name]


def write_manifest(manifest, workdir, folder, memory):
    with open(manifest, "w", encoding="utf-8") as file:
        file.write(
            f'[pipeline]\nname = "bench"\nworkdir = "{workdir}"\n'
            f'[stage.samples]\nuses = "import"\nfiles = "{folder}/samples/*.parquet"\nsource = "x"\ncheck = "header"\n'
            'columns = { key = "id", image = "image", caption = "alt" }\n'
            f'[stage.table]\nuses = "import"\nfiles = "{folder}/table/*.parquet"\nsource = "x"\n'
            'columns = { key = "key", recaption = "recaption", recaption_short = "recaption_short", stem = "key" }\n'
            '[stage.merge]\nuses = "merge"\nfrom = ["samples", "table"]\ncolumns = ["recaption", "recaption_short"]\n'
            f'memory = "{memory}"\n'
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", metavar="BINARY", nargs="?", default=f"{CACHE}/target/release/ferrotype")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--memory", default="1 GB")
    parser.add_argument("--peer", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        with_duckdb(*options.peer)
        return
    binary = os.path.abspath(options.binary)
    with tempfile.TemporaryDirectory(prefix="bench-merge-", dir=CACHE) as folder:
        make(folder, options.rows)
        workdir, manifest = f"{folder}/work", f"{folder}/merge.toml"
        write_manifest(manifest, workdir, folder, options.memory)
        subprocess.run([binary, "run", manifest, "--until", "samples", "-q"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([binary, "run", manifest, "--until", "table", "-q"], check=True, stdout=subprocess.DEVNULL)
        target = f"{folder}/duckdb.parquet"

        def ours():
            shutil.rmtree(f"{workdir}/stages/merge", ignore_errors=True)
            seconds, memory, _ = watched([binary, "run", manifest, "--stage", "merge", "-q"])
            return seconds, memory, parquet(workdir, "merge")

        def theirs():
            samples, table = (f"{workdir}/stages/{stage}/*.parquet" for stage in ("samples", "table"))
            arguments = [samples, table, target, options.memory.replace(" ", ""), f"{folder}/spill"]
            seconds, memory, _ = watched([sys.executable, os.path.abspath(__file__), "--peer", *arguments])
            return seconds, memory, [target]

        took, memory, found = collections.defaultdict(list), collections.defaultdict(list), {}
        parties = {"ferrotype": ours, "duckdb": theirs}
        for turn in range(options.runs):
            for name in list(parties)[:: 1 if turn % 2 == 0 else -1]:
                seconds, most, paths = parties[name]()
                took[name].append(seconds)
                memory[name].append(most)
                if turn == 0:
                    found[name] = checksum(paths, ["id", "caption", "recaption", "recaption_short"])
        if len(set(found.values())) != 1:
            sys.exit(f"void: they wrote different rows: {found}")
        print(f"merge: {options.rows:,} samples and as many captions, {options.memory} of memory, {options.runs} times in turn")
        mine = statistics.median(took["ferrotype"])
        for name, seconds in took.items():
            median = statistics.median(seconds)
            print(
                f"  {name:<12}{median:>8.2f} s ({min(seconds):.2f} to {max(seconds):.2f})   peak {max(memory[name]):,.0f} MB"
                + ("" if name == "ferrotype" else f"   ours is {median / mine:.2f} times as fast")
            )


if __name__ == "__main__":
    main()
