#!/usr/bin/env python3
"""Times our download stage beside img2dataset: the same pictures, from one web server on this machine, and the same work.

usage: PYTHON bench_peers.py [options] BINARY    (PYTHON is of the environment that `make bench-peers` makes; BINARY is ours)

Each run is a whole process with an empty folder to write to; the two take turns. A run that does not bring every picture is void,
and ends everything. nginx shares the processors with both; what it takes of them is measured too.
"""

import argparse
import collections
import csv
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import pyarrow.dataset

import bench_pictures

CACHE = os.path.expanduser("~/.cache/ferrotype")
PARTIES = ("img2dataset", "ferrotype")

# What both are asked for; `target` is how many times img2dataset's images a second we are to reach.
WORKLOADS = {
    "untouched": {
        "about": "bytes kept as served, sha256 of each",
        "target": 3.0,
        "img2dataset": {"disable_all_reencoding": True, "compute_hash": "sha256"},
        "ferrotype": 'resize = { mode = "no" }\ncheck = "header"\ncompute_hash = "sha256"',
    },
    "untouched-no-hash": {
        "about": "bytes kept as served, no hash on either side",
        "target": 3.0,
        "img2dataset": {"disable_all_reencoding": True, "compute_hash": None},
        "ferrotype": 'resize = { mode = "no" }\ncheck = "header"\ncompute_hash = "none"',
    },
    "jpeg": {
        "about": "border 256, JPEG of quality 95, sha256 of the bytes as served",
        "target": 2.5,
        "img2dataset": {"resize_mode": "border", "image_size": 256, "encode_format": "jpg", "compute_hash": "sha256"},
        "ferrotype": 'resize = { mode = "border", size = 256, format = "jpg", quality = 95 }\ncompute_hash = "sha256"',
    },
    "webp": {
        "about": "keep_ratio 512, WebP of quality 95 at libwebp's method 4, sha256 of the bytes as served",
        "target": 1.0,
        "img2dataset": {"resize_mode": "keep_ratio", "image_size": 512, "encode_format": "webp", "compute_hash": "sha256"},
        "ferrotype": 'resize = { mode = "keep_ratio", size = 512, format = "webp", quality = 95 }\ncompute_hash = "sha256"',
    },
}

# The fastest found by `--sweep` on two cores, of each format of img2dataset's that has about the same speed the one that takes
# least memory. It ends a process after five shards, so it gets few and large ones.
CPU_BOUND = {"processes": 2, "threads": 16, "shards_each": 1, "format": "files"}
BEST = {
    "img2dataset": {
        "untouched": {**CPU_BOUND, "processes": 3},
        "untouched-no-hash": {**CPU_BOUND, "processes": 3},
        "jpeg": CPU_BOUND,
        "webp": CPU_BOUND,
    },
    "ferrotype": {name: {"in_flight": 32, "partitions": 2, "rows": 1000} for name in WORKLOADS},
}
SWEEP = {
    "img2dataset": (
        [{"processes": p, "threads": t, "shards_each": 1, "format": "webdataset"} for p in (1, 2, 3, 4) for t in (16, 64, 256)],
        [{"shards_each": s, "format": f} for s in (1, 4) for f in ("files", "webdataset", "parquet")],
    ),
    "ferrotype": (
        [{"in_flight": i, "partitions": p, "rows": 1000} for p in (1, 2, 4) for i in (16, 32, 64, 256)],
        [{"rows": r} for r in (250, 500)],
    ),
}


def img2dataset(workload, settings, urls, count, folder):
    """Its command, as its own documentation has it for speed: no EXIF, no reports to a server."""
    shard = -(-count // (settings["processes"] * settings["shards_each"]))
    options = {
        "url_list": urls,
        "input_format": "csv",
        "url_col": "url",
        "caption_col": "caption",
        "output_folder": f"{folder}/out",
        "output_format": settings["format"],
        "processes_count": settings["processes"],
        "thread_count": settings["threads"],
        "number_sample_per_shard": max(shard, 2),
        "encode_quality": 95,
        "extract_exif": False,
        "enable_wandb": False,
        **WORKLOADS[workload]["img2dataset"],
    }
    program = os.path.join(os.path.dirname(sys.executable), "img2dataset")
    return [program, *(f"--{name}={value}" for name, value in options.items())]


def ferrotype(binary, workload, settings, urls, folder):
    """Our command. img2dataset has no limits for each host, so ours are off."""
    manifest = f"{folder}/bench.toml"
    with open(manifest, "w", encoding="utf-8") as file:
        file.write(
            f'[pipeline]\nname = "bench"\nworkdir = "{folder}/out"\n'
            f'[stage.download]\nuses = "download"\nurls = "{urls}"\n'
            'columns = { url = "url", caption = "caption" }\n'
            f"rows_per_shard = {settings['rows']}\n"
            'allow_networks = ["127.0.0.0/8"]\n'
            f"per_host = {{ in_flight = {settings['in_flight']}, per_second = 0 }}\n"
            f"in_flight = {settings['in_flight']}\npartitions = {settings['partitions']}\n"
            f"{WORKLOADS[workload]['ferrotype']}\n"
        )
    return [binary, "run", manifest, "-q"]


class Watch(threading.Thread):
    """The most memory that the processes of one session held at a time: the sum of their proportional set sizes, four times a second."""

    def __init__(self, session):
        super().__init__(daemon=True)
        self.session, self.most, self.over = session, 0, threading.Event()
        self.start()

    def run(self):
        while not self.over.wait(0.25):
            self.most = max(self.most, sum(map(self.held, filter(str.isdigit, os.listdir("/proc")))))

    def held(self, process):
        """Its bytes; 0 for a process of another session."""
        try:
            with open(f"/proc/{process}/stat", encoding="utf-8") as file:
                if int(file.read().rpartition(")")[2].split()[3]) != self.session:
                    return 0
            with open(f"/proc/{process}/smaps_rollup", encoding="utf-8") as file:
                return next((int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:")), 0)
        except OSError:
            return 0  # it ended meanwhile

    def end(self):
        self.over.set()
        self.join()
        return self.most


def run(command, folder, server):
    """Runs it to its end; what it took."""
    # Albumentations would ask PyPI at each import whether there is a newer one.
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    os.sync()  # what the run before has left to write is not this one's
    of_server, start = server.seconds(), time.perf_counter()
    with open(f"{folder}/log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        watch, limit = Watch(process.pid), threading.Timer(3600, os.killpg, (process.pid, signal.SIGKILL))
        limit.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        limit.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        void(command, folder, f"exit status {process.returncode}")
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "memory": watch.end(), "server": server.seconds() - of_server}


def void(command, folder, why):
    with open(f"{folder}/log", encoding="utf-8", errors="replace") as log:
        sys.exit(f"void: {' '.join(command)}\n{why}; the end of what it said:\n{log.read()[-3000:]}")


def results(party, folder):
    """What it brought: by URL, the hash and size that it states; and the bytes that it wrote."""
    place = f"{folder}/out/stages/download" if party == "ferrotype" else f"{folder}/out"
    files = [f"{place}/{name}" for name in os.listdir(place) if name.endswith(".parquet")]
    found = pyarrow.dataset.dataset(files)
    columns = [name for name in ("url", "status", "sha256", "width", "height") if name in found.schema.names]
    rows = found.to_table(columns=columns).to_pylist()
    rows = {row["url"]: row for row in rows if row.get("status", "success") == "success"}
    written = sum(os.path.getsize(f"{at}/{name}") for at, _, names in os.walk(place) for name in names)
    return rows, written


def once(party, workload, settings, bench, count):
    """One run over the first `count` pictures of the list."""
    folder = tempfile.mkdtemp(prefix="bench-peers-", dir=CACHE)
    try:
        urls = bench.urls(folder, count)
        if party == "img2dataset":
            command = img2dataset(workload, settings, urls, bench.count, folder)
        else:
            command = ferrotype(bench.binary, workload, settings, urls, folder)
        took = run(command, folder, bench.server)
        took["rows"], took["written"] = results(party, folder)
        if len(took["rows"]) != count:
            void(command, folder, f"{len(took['rows'])} pictures of {count}")
        return took
    finally:
        shutil.rmtree(folder)


class Bench:
    """What all runs share."""

    def __init__(self, options, server, paths):
        self.binary, self.count, self.server = os.path.abspath(options.binary), options.pictures, server
        self.paths = paths[: self.count]

    def urls(self, folder, count):
        with open(f"{folder}/urls.csv", "w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["url", "caption"])
            lines.writerows([f"{self.server.root}/{path}", f"a photograph, number {i}"] for i, path in enumerate(self.paths[:count]))
        return f"{folder}/urls.csv"


def same_work(workload, ours, theirs):
    """Both state the same hash of what was served, and the same size of what was made of it, wherever both state one."""
    for url, row in ours.items():
        for name in ("sha256", "width", "height"):
            one, other = row.get(name), theirs[url].get(name)
            if None not in (one, other) and one != other:
                sys.exit(f"void: {workload}: {url}: {name} is {one} in ours and {other} in img2dataset's")


def compare(workload, bench, parties, times):
    """Runs both in turn; every figure of every run."""
    figures = {party: collections.defaultdict(list) for party in parties}
    for turn in range(times):
        brought = {}
        # Who goes first changes from turn to turn.
        for party in parties if turn % 2 == 0 else parties[::-1]:
            settings, of = BEST[party][workload], figures[party]
            of["start"].append(once(party, workload, settings, bench, 1)["wall"])
            took = once(party, workload, settings, bench, bench.count)
            brought[party] = took.pop("rows")
            for name, value in took.items():
                of[name].append(value)
            print(f"  {workload} {turn + 1}/{times} {party}: {bench.count / took['wall']:.1f} images/s", file=sys.stderr, flush=True)
        if len(parties) == 2:
            same_work(workload, brought["ferrotype"], brought["img2dataset"])
    for of in figures.values():
        start = statistics.median(of["start"])
        of["images_s"] = [bench.count / wall for wall in of["wall"]]
        # Less what a list of one picture takes: the start of the programs and their end.
        of["images_s_without_start"] = [bench.count / (wall - start) for wall in of["wall"]]
        of["written_mb"], of["memory_mb"] = ([value / 1e6 for value in of.pop(name)] for name in ("written", "memory"))
    return figures


SHOWN = [
    ("images_s", "images/s, whole process"),
    ("images_s_without_start", "images/s, without start-up"),
    ("start", "start-up and end, s"),
    ("wall", "wall, s"),
    ("cpu", "CPU, s"),
    ("server", "CPU of nginx, s"),
    ("memory_mb", "peak memory, MB (PSS)"),
    ("written_mb", "written, MB"),
]


def table(workload, figures):
    """The medians, with the least and the most, and ours as a multiple of img2dataset's."""
    lines = [f"\n{workload}: {WORKLOADS[workload]['about']}"]
    lines.append(f"  {'':<28}" + "".join(f"{party:>30}" for party in figures) + (f"{'ratio':>9}" if len(figures) == 2 else ""))
    for name, label in SHOWN:
        line, medians = f"  {label:<28}", []
        for of in figures.values():
            medians.append(statistics.median(of[name]))
            line += f"{f'{medians[-1]:,.2f} ({min(of[name]):,.2f} to {max(of[name]):,.2f})':>30}"
        lines.append(line + (f"{medians[1] / medians[0]:>9.2f}" if len(medians) == 2 else ""))
    if len(figures) == 2:
        ratios = [
            statistics.median(figures["ferrotype"][name]) / statistics.median(figures["img2dataset"][name])
            for name in ("images_s", "images_s_without_start", "memory_mb")
        ]
        speed, target = min(ratios[:2]), WORKLOADS[workload]["target"]
        lines.append(
            f"  the stricter of the two speeds: {speed:.2f} times img2dataset's; asked for {target}: {'yes' if speed >= target else 'NO'}"
            f"; lower peak memory: {'yes' if ratios[2] < 1 else 'NO'}"
        )
    return "\n".join(lines)


def sweep(workload, bench, parties):
    """Tries settings one by one; prints each, the fastest last."""
    for party in parties:
        tried, best = [], {}
        for step in SWEEP[party]:
            for settings in step:
                settings = {**best, **settings}
                start = once(party, workload, settings, bench, 1)["wall"]
                took = once(party, workload, settings, bench, bench.count)
                tried.append((bench.count / (took["wall"] - start), settings))
                print(
                    f"  {workload} {party} {json.dumps(settings)}: {tried[-1][0]:.1f} images/s without start-up, "
                    f"{bench.count / took['wall']:.1f} with; {took['memory'] / 1e6:.0f} MB; {took['cpu']:.1f} CPU s",
                    flush=True,
                )
            best = max(tried, key=lambda pair: pair[0])[1]
        print(f"  {workload} {party} fastest: {json.dumps(best)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", metavar="BINARY", nargs="?", default=f"{CACHE}/target/release/ferrotype")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=bench_pictures.FILES)
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--only", choices=PARTIES)
    parser.add_argument("--sweep", action="store_true", help="find the best settings, one run each, instead of comparing")
    parser.add_argument("--json", default=f"{CACHE}/bench-peers.json", help="where every figure of every run is written")
    options = parser.parse_args()
    parties = [options.only] if options.only else list(PARTIES)
    if "ferrotype" in parties and not os.access(options.binary, os.X_OK):
        sys.exit(f"{options.binary} is not there; `make` builds it")
    pictures = f"{CACHE}/bench-pictures"
    paths = bench_pictures.make_pictures(pictures)
    with tempfile.TemporaryDirectory() as folder, bench_pictures.Server(folder, pictures) as server:
        bench = Bench(options, server, paths)
        facts = {
            "machine": f"{os.cpu_count()} processors, {platform.platform()}, load {os.getloadavg()[0]:.2f}",
            "pictures": bench_pictures.describe(pictures, bench.paths),
            "img2dataset": importlib.metadata.version("img2dataset"),
            "nginx_requests_s": {
                kind: round(server.ceiling(bench.paths, 5, kind == "kept")) for kind in ("kept", "new connection each")
            },
        }
        print(f"{facts['machine']}\n{facts['pictures']}\nnginx, {server.workers} workers, asked by wrk for the same files: ", end="")
        print("; ".join(f"{rate:,} a second ({kind})" for kind, rate in facts["nginx_requests_s"].items()), end=". ")
        print("nginx, and here wrk, share the processors with what they serve.\n", flush=True)
        if options.sweep:
            for workload in options.workloads:
                sweep(workload, bench, parties)
            return
        recorded = {**facts, "settings": {party: BEST[party] for party in parties}, "runs": {}}
        for workload in options.workloads:
            recorded["runs"][workload] = compare(workload, bench, parties, options.runs)
            print(table(workload, recorded["runs"][workload]), flush=True)
            with open(options.json, "w", encoding="utf-8") as file:
                json.dump(recorded, file, indent=1)
        print(f"\n{options.runs} runs each, in turn: median (least to most). Every run brought {options.pictures:,} pictures.")


if __name__ == "__main__":
    main()
