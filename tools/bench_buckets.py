#!/usr/bin/env python3
"""Times our bucket and index stages beside others that do the same work on the same files, in turn.

usage: PYTHON bench_buckets.py [options] BINARY    (PYTHON is of the environment that `make bench-buckets` makes; BINARY is ours)

bucket: the pictures of bench_pictures.py in one parquet shard to buckets of 256 pixels in steps of 16, in one parquet file sorted
by bucket: ours, Pillow (Lanczos; what the reference does) and libvips (through pyvips), each with as many processes as there are
processors. index: where the rows of each bucket lie in parquet files whose buckets are scattered: ours, DuckDB, and pyarrow with
numpy. Each run is a whole process that ends with its file written; results are compared.
"""

import argparse
import collections
import io
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy
import pyarrow
import pyarrow.parquet

import bench_pictures

CACHE = os.path.expanduser("~/.cache/ferrotype")
RESOLUTION, PATCH, QUALITY = 256, 16, 95
# How many times a peer's speed ours is to be, by encoding.
TARGETS = {("jpeg", "pillow"): 4, ("png", "pillow"): 8, ("jpeg", "libvips"): 1, ("webp", "libvips"): 1}


def bucket_size(width, height):
    """As the reference has it: longest side down to the resolution, sides to the nearest multiple (ties down), at least one."""
    longest = max(width, height)
    top, bottom = (RESOLUTION, longest) if longest > RESOLUTION else (1, 1)

    def snap(side):
        whole, rest = divmod(side * top, PATCH * bottom)
        return max(whole + (rest * 2 > PATCH * bottom), 1) * PATCH

    return snap(width), snap(height)


def with_pillow(job):
    from PIL import Image, ImageOps

    data, encoding = job
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode in ("RGBA", "LA", "P"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "WHITE")
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    size = bucket_size(*image.size)
    image = image.resize(size, Image.LANCZOS)
    out = io.BytesIO()
    options = {"jpeg": {"quality": QUALITY}, "png": {}, "webp": {"quality": QUALITY, "method": 4}}[encoding]
    image.save(out, encoding, **options)
    return size, out.getvalue()


def with_libvips(job):
    import pyvips

    data, encoding = job
    image = pyvips.Image.new_from_buffer(data, "")
    size = bucket_size(image.width, image.height)
    # Reads JPEG and WebP at a smaller scale where that is enough, and turns by EXIF.
    image = pyvips.Image.thumbnail_buffer(data, size[0], height=size[1], size="force")
    if image.hasalpha():
        image = image.flatten(background=255)
    if encoding == "jpeg":
        return size, image.jpegsave_buffer(Q=QUALITY)
    if encoding == "webp":
        return size, image.webpsave_buffer(Q=QUALITY, effort=4)
    return size, image.pngsave_buffer()


def bucket_by_peer(work, source, target, encoding):
    """All of a shard: in processes, then sorted and written. Runs as a process of its own."""
    os.environ["VIPS_CONCURRENCY"] = "1"
    table = pyarrow.parquet.read_table(source)
    images = table.column("image").to_pylist()
    with multiprocessing.Pool(os.cpu_count()) as pool:
        results = pool.map(work, [(data, encoding) for data in images], chunksize=16)
    order = sorted(range(len(results)), key=lambda i: (results[i][0], i))
    table = table.drop_columns(["image", "width", "height"]).take(order)
    for name, values in [
        ("image", [results[i][1] for i in order]),
        ("width", [results[i][0][0] for i in order]),
        ("height", [results[i][0][1] for i in order]),
        ("bucket_size", ["{}x{}".format(*results[i][0]) for i in order]),
    ]:
        table = table.append_column(name, pyarrow.array(values))
    pyarrow.parquet.write_table(table, target, compression={name: "NONE" if name == "image" else "ZSTD" for name in table.schema.names})


def index_by_numpy(folder, target):
    sizes, files, rows = [], [], []
    for number, path in enumerate(sorted(os.listdir(folder))):
        column = pyarrow.parquet.read_table(f"{folder}/{path}", columns=["bucket_size"]).column(0)
        encoded = column.combine_chunks().dictionary_encode()
        codes, names = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
        order = numpy.argsort(codes, kind="stable").astype(numpy.uint32)
        ends = numpy.searchsorted(codes[order], range(len(names) + 1))
        for code, name in enumerate(names):
            sizes.append(name)
            files.append(path)
            rows.append(pyarrow.array(order[ends[code] : ends[code + 1]]))
    rows = pyarrow.ListArray.from_arrays(numpy.cumsum([0] + [len(r) for r in rows]), pyarrow.concat_arrays(rows))
    table = pyarrow.table({"bucket_size": sizes, "file": files, "rows": rows})
    pyarrow.parquet.write_table(table, target, compression="ZSTD")


def index_by_duckdb(folder, target):
    import duckdb

    duckdb.sql(
        f"""COPY (SELECT bucket_size, filename, list(file_row_number::UINTEGER ORDER BY file_row_number) AS rows
        FROM read_parquet('{folder}/*.parquet', filename = true, file_row_number = true) GROUP BY bucket_size, filename
        ORDER BY bucket_size, filename) TO '{target}' (FORMAT parquet, COMPRESSION zstd)"""
    )


PEERS = {"pillow": with_pillow, "libvips": with_libvips, "numpy": index_by_numpy, "duckdb": index_by_duckdb}


def run(command):
    """Seconds of a whole process."""
    os.sync()
    start = time.perf_counter()
    if (code := subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode) != 0:
        sys.exit(f"void: {' '.join(command)} ended with {code}")
    return time.perf_counter() - start


def peer(name, *arguments):
    return [sys.executable, os.path.abspath(__file__), "--peer", name, *arguments]


def counts(path):
    """Rows by bucket of what was written."""
    table = pyarrow.parquet.read_table(path, columns=None)
    if "rows" in table.schema.names:
        lengths = table.column("images").to_pylist() if "images" in table.schema.names else [len(r) for r in table.column("rows")]
        found = collections.Counter()
        for size, length in zip(table.column("bucket_size").to_pylist(), lengths):
            found[size] += length
        return found
    return collections.Counter(table.column("bucket_size").to_pylist())


def ours_written(workdir, stage):
    place = f"{workdir}/stages/{stage}"
    return [f"{place}/{name}" for name in os.listdir(place) if name.endswith(".parquet")][0]


def in_turn(parties, times):
    """Seconds of each, the order changing from turn to turn; `parties` maps a name to what runs it and gives its file."""
    took, found = collections.defaultdict(list), {}
    for turn in range(times):
        for name in list(parties) if turn % 2 == 0 else list(parties)[::-1]:
            seconds, path = parties[name]()
            took[name].append(seconds)
            found[name] = counts(path)
            if found[name] != next(iter(found.values())):
                sys.exit(f"void: {name} found other buckets than {next(iter(found))}")
    return took


def show(title, took, rows, unit, targets):
    print(f"\n{title}")
    ours = statistics.median(took["ferrotype"])
    for name, seconds in took.items():
        median = statistics.median(seconds)
        line = f"  {name:<12}{median:>9.2f} s ({min(seconds):.2f} to {max(seconds):.2f}){rows / median:>14,.0f} {unit}"
        if name != "ferrotype":
            line += f"   ours is {median / ours:.2f} times as fast"
            if name in targets:
                line += f"; asked for {targets[name]}: {'yes' if median / ours >= targets[name] else 'NO'}"
        print(line, flush=True)


def bench_bucket(binary, folder, pictures, paths, times, encodings):
    os.makedirs(f"{folder}/in")
    for number, path in enumerate(paths):
        os.link(f"{pictures}/{path}", f"{folder}/in/{number:05}{os.path.splitext(path)[1]}")
    for encoding in encodings:
        manifest, workdir = f"{folder}/{encoding}.toml", f"{folder}/work-{encoding}"
        with open(manifest, "w", encoding="utf-8") as file:
            file.write(
                f'[pipeline]\nname = "bench"\nworkdir = "{workdir}"\n[stage.import]\nuses = "import"\nfolder = "{folder}/in"\n'
                f'caption = "none"\n[stage.bucket]\nuses = "bucket"\nfrom = "import"\nmax_resolution = {RESOLUTION}\n'
                f'patch_size = {PATCH}\nformat = "{encoding}"\nquality = {QUALITY}\n'
            )
        subprocess.run([binary, "run", manifest, "--stage", "import", "-q"], check=True, stdout=subprocess.DEVNULL)
        source = ours_written(workdir, "import")

        def ours():
            shutil.rmtree(f"{workdir}/stages/bucket", ignore_errors=True)
            return run([binary, "run", manifest, "--stage", "bucket", "-q"]), ours_written(workdir, "bucket")

        def of(name):
            def theirs():
                target = f"{folder}/{name}.parquet"
                return run(peer(name, source, target, encoding)), target

            return theirs

        parties = {"ferrotype": ours, "libvips": of("libvips"), "pillow": of("pillow")}
        targets = {name: target for (of_encoding, name), target in TARGETS.items() if of_encoding == encoding}
        title = f"bucket: {len(paths):,} pictures to {encoding}, {times} times in turn"
        show(title, in_turn(parties, times), len(paths), "images/s", targets)

    def at(resolutions):
        shutil.rmtree(f"{workdir}/stages/bucket", ignore_errors=True)
        sets = ["--set", f"stage.bucket.max_resolution={resolutions}"]
        return run([binary, "run", manifest, "--stage", "bucket", "-q", *sets])

    passes = collections.defaultdict(list)
    for turn in range(times):
        for name in ["one pass", "three runs"][:: 1 if turn % 2 == 0 else -1]:
            passes[name].append(at([256, 512, 1024]) if name == "one pass" else sum(at(side) for side in [256, 512, 1024]))
    one, three = (statistics.median(passes[name]) for name in ["one pass", "three runs"])
    print(f"\nthree resolutions to {encoding}: one pass {one:.2f} s, three runs {three:.2f} s: {three / one:.2f} times")


def bench_index(binary, folder, rows, times):
    data, files = f"{folder}/scattered", 10
    os.makedirs(data)
    chance = numpy.random.default_rng(7)
    names = [f"{16 * w}x{16 * h}" for w, h in [(16, n) for n in range(4, 17)] + [(n, 16) for n in range(4, 16)] + [(12, 9), (9, 12)]]
    weights = 1 / (1 + numpy.arange(len(names)))
    for number in range(files):
        sizes = pyarrow.DictionaryArray.from_arrays(chance.choice(len(names), rows // files, p=weights / weights.sum()).astype("int32"), names)
        keys = pyarrow.array([f"{number:03}/{row:08}" for row in range(rows // files)])
        pyarrow.parquet.write_table(pyarrow.table({"key": keys, "bucket_size": sizes.cast("string")}), f"{data}/{number:03}.parquet")
    manifest, workdir = f"{folder}/index.toml", f"{folder}/work-index"
    with open(manifest, "w", encoding="utf-8") as file:
        file.write(f'[pipeline]\nname = "bench"\nworkdir = "{workdir}"\n[stage.index]\nuses = "index"\nfiles = "{data}"\n')

    def ours():
        shutil.rmtree(workdir, ignore_errors=True)
        return run([binary, "run", manifest, "-q"]), ours_written(workdir, "index")

    def of(name):
        def theirs():
            target = f"{folder}/{name}.parquet"
            return run(peer(name, data, target)), target

        return theirs

    parties = {"ferrotype": ours, "duckdb": of("duckdb"), "numpy": of("numpy")}
    show(f"index: {rows:,} rows in {files} files, {times} times in turn", in_turn(parties, times), rows, "rows/s", {"duckdb": 1})


def watched(command):
    """Seconds of a process, the most memory that it held in MB, and what it wrote."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        try:
            with open(f"/proc/{process.pid}/status", encoding="utf-8") as file:
                peak = max([peak] + [int(line.split()[1]) for line in file if line.startswith("VmHWM")])
        except OSError:
            pass
        time.sleep(0.01)
    if process.returncode != 0:
        sys.exit(f"void: {' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - start, peak / 1e3, process.stdout.read()


def bench_growth(binary, folder):
    """Images a second and memory of our stages and loader as the number of (small) pictures grows."""
    from PIL import Image

    chance = numpy.random.default_rng(5)
    os.makedirs(f"{folder}/small")
    for number in range(1000):
        width, height = (int(side) for side in chance.integers(60, 160, 2))
        coarse = Image.fromarray(chance.integers(0, 256, (6, 6, 3), "uint8"))
        coarse.resize((width, height), Image.BICUBIC).save(f"{folder}/small/{number:03}.jpg", quality=90)
    print("\nas work grows: pictures of about 110 pixels to buckets of 64, JPEG; then the loader, batches of 64")
    for count in (1_000, 10_000, 100_000):
        workdir, images, manifest = f"{folder}/work-{count}", f"{folder}/in-{count}", f"{folder}/growth.toml"
        os.makedirs(images)
        for number in range(count):
            os.link(f"{folder}/small/{number % 1000:03}.jpg", f"{images}/{number:06}.jpg")
        with open(manifest, "w", encoding="utf-8") as file:
            file.write(
                f'[pipeline]\nname = "bench"\nworkdir = "{workdir}"\n[stage.import]\nuses = "import"\nfolder = "{images}"\n'
                'caption = "none"\n[stage.bucket]\nuses = "bucket"\nfrom = "import"\nmax_resolution = 64\npatch_size = 16\n'
                'format = "jpeg"\n[stage.index]\nuses = "index"\nfrom = "bucket"\n'
            )
        line = f"  {count:>7,} pictures"
        for stage in ("import", "bucket", "index"):
            seconds, memory, _ = watched([binary, "run", manifest, "--stage", stage, "-q"])
            line += f"   {stage} {count / seconds:>9,.0f}/s {memory:>4,.0f} MB"
        _, memory, output = watched([binary, "loader", manifest, "--bench", "--json", "--batch-size", "64"])
        print(f"{line}   loader {json.loads(output)['images_per_second']:>8,.0f}/s {memory:>4,.0f} MB", flush=True)
        shutil.rmtree(images)
        shutil.rmtree(workdir)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", metavar="BINARY", nargs="?", default=f"{CACHE}/target/release/ferrotype")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=bench_pictures.CONTENTS)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--encodings", nargs="*", choices=["jpeg", "png", "webp"], default=["jpeg", "png", "webp"])
    parser.add_argument("--growth", action="store_true", help="instead: how our own cost grows with the number of pictures")
    parser.add_argument("--peer", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        name, *arguments = options.peer
        if name in ("pillow", "libvips"):
            bucket_by_peer(PEERS[name], *arguments)
        else:
            PEERS[name](*arguments)
        return
    binary = os.path.abspath(options.binary)
    if options.growth:
        with tempfile.TemporaryDirectory(prefix="bench-growth-", dir=CACHE) as folder:
            bench_growth(binary, folder)
        return
    pictures = f"{CACHE}/bench-pictures"
    paths = bench_pictures.make_pictures(pictures)[: options.pictures]
    print(f"{os.cpu_count()} processors; {bench_pictures.describe(pictures, paths)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-buckets-", dir=CACHE) as folder:
        bench_bucket(binary, folder, pictures, paths, options.runs, options.encodings)
        if options.rows:
            bench_index(binary, folder, options.rows, options.runs)


if __name__ == "__main__":
    main()
