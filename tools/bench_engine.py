#!/usr/bin/env python3
"""How long Ferrotype, Snakemake and DVC take to plan the same shape: 6 stages x 1,000 partitions, nothing made yet.

usage: bench_engine.py BINARY BIN    (our binary; the bin folder of the environment that `make peers` made)

Each plans as a whole process, five times, in turn; the median counts. The first stage reads a list of a thousand rows, one a
partition; each further stage makes one output of each output of the stage before.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

STAGES, PARTITIONS, TIMES = 6, 1000, 5


def ferrotype(folder, binary):
    with open(f"{folder}/urls.tsv", "w", encoding="utf-8") as file:
        file.write("url\tcaption\n" + "".join(f"http://host.invalid/{i}.jpg\ta picture\n" for i in range(PARTITIONS)))
    text = f'[pipeline]\nname = "bench"\nworkdir = "{folder}/work"\n'
    text += f'[stage.s0]\nuses = "download"\nurls = "{folder}/urls.tsv"\nrows_per_shard = 1\n'
    for i in range(1, STAGES):
        text += f'[stage.s{i}]\nuses = "filter"\nfrom = "s{i - 1}"\n'
    with open(f"{folder}/bench.toml", "w", encoding="utf-8") as file:
        file.write(text)
    return [binary, "plan", f"{folder}/bench.toml"]


def snakemake(folder, peers):
    os.makedirs(f"{folder}/s0")
    for i in range(PARTITIONS):
        with open(f"{folder}/s0/{i}.in", "w", encoding="utf-8") as file:
            file.write("x")
    rules = [f'rule all:\n    input: expand("s{STAGES}/{{i}}.in", i=range({PARTITIONS}))\n']
    for i in range(STAGES):
        rules.append(
            f'rule stage{i}:\n    input: "s{i}/{{i}}.in"\n    output: "s{i + 1}/{{i}}.in"\n    shell: "cp {{input}} {{output}}"\n'
        )
    with open(f"{folder}/Snakefile", "w", encoding="utf-8") as file:
        file.write("\n".join(rules))
    return [f"{peers}/snakemake", "--dry-run", "--quiet", "all", "--cores", "2", "--directory", folder, "-s", f"{folder}/Snakefile"]


def dvc(folder, peers):
    stages = ["stages:"]
    os.makedirs(f"{folder}/s0")
    items = "[" + ", ".join(str(i) for i in range(PARTITIONS)) + "]"
    for i in range(PARTITIONS):
        with open(f"{folder}/s0/{i}.in", "w", encoding="utf-8") as file:
            file.write("x")
    for i in range(STAGES):
        stages.append(
            f"  stage{i}:\n    foreach: {items}\n    do:\n      cmd: cp s{i}/${{item}}.in s{i + 1}/${{item}}.in\n"
            f"      deps:\n        - s{i}/${{item}}.in\n      outs:\n        - s{i + 1}/${{item}}.in"
        )
    with open(f"{folder}/dvc.yaml", "w", encoding="utf-8") as file:
        file.write("\n".join(stages) + "\n")
    subprocess.run([f"{peers}/dvc", "init", "--no-scm", "--quiet"], cwd=folder, check=True)
    # `dvc repro --dry` stops at the first input that is not made yet; `status` looks at every stage and says which would run.
    return [f"{peers}/dvc", "status", "--quiet"]


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    binary, peers = sys.argv[1:]
    with tempfile.TemporaryDirectory() as root:
        contenders = {}
        for name, prepare, program in [("ferrotype", ferrotype, binary), ("snakemake", snakemake, peers), ("dvc", dvc, peers)]:
            folder = f"{root}/{name}"
            os.makedirs(folder)
            contenders[name] = (prepare(folder, program), folder, [])
        for _ in range(TIMES):
            for name, (command, folder, times) in contenders.items():
                start = time.perf_counter()
                subprocess.run(command, cwd=folder, check=name != "dvc", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=1800)
                times.append(time.perf_counter() - start)
        ours = statistics.median(contenders["ferrotype"][2])
        print(f"planning {STAGES} stages x {PARTITIONS} partitions, nothing made yet, as a whole process:")
        for name, (_, _, times) in contenders.items():
            seconds = statistics.median(times)
            print(f"  {name:<10} {seconds:>9.3f} s   {seconds / ours:>8.1f} times ours   ({len(times)} runs)")


if __name__ == "__main__":
    main()
