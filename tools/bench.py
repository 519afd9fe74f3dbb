#!/usr/bin/env python3
"""Times the models in Rust and in PyTorch on this machine, one after the other, and prints the ratios.

usage: bench.py PYTHON    (of the environment that `make peers` made)
"""

import json
import os
import subprocess
import sys
import time

TARGET = os.environ["CARGO_TARGET_DIR"]
HERE = os.path.dirname(os.path.abspath(__file__))


def ours(since):
    """Milliseconds by name, of the runs that criterion wrote after `since`."""
    times = {}
    root = f"{TARGET}/criterion"
    for name in os.listdir(root):
        path = f"{root}/{name}/new/estimates.json"
        if os.path.exists(path) and os.path.getmtime(path) >= since:
            with open(path, encoding="utf-8") as file:
                times[name] = json.load(file)["median"]["point_estimate"] / 1e6
    return times


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    since = time.time()
    subprocess.run(["cargo", "bench", "--quiet", "--locked", "-p", "ferrotype-models", "--bench", "models"], check=True)
    rust = ours(since)
    lines = subprocess.run([sys.argv[1], f"{HERE}/bench_torch.py"], check=True, capture_output=True, text=True).stdout
    torch = {name: float(ms) for name, ms in (line.split()[:2] for line in lines.splitlines() if line.strip())}
    print(f"{'':<32} {'ours, ms':>10} {'PyTorch, ms':>12} {'PyTorch / ours':>15}")
    for name in sorted(rust.keys() & torch.keys()):
        print(f"{name:<32} {rust[name]:>10.1f} {torch[name]:>12.1f} {torch[name] / rust[name]:>15.2f}")
    language_model(sys.argv[1])


def language_model(python):
    """Tokens a second of the small real model, here, in transformers and in llama.cpp."""
    gguf = os.path.expanduser("~/.cache/ferrotype/files/smollm2-135m-instruct-q4_1.gguf")
    if not os.path.exists(gguf):
        print(f"skipped: {gguf} is not there; `make files` fetches it")
        return
    fixture = f"{HERE}/../models/tests/fixtures/smollm2.json"
    cargo = ["cargo", "run", "--quiet", "--release", "--locked", "-p", "ferrotype-models", "--example", "chat", "--"]
    print("SmolLM2-135M-Instruct, two threads, tokens a second:")
    for command in [cargo + [gguf, "--time", fixture], [python, f"{HERE}/reference_smollm2.py", "--time", gguf]]:
        for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
            name, value, unit = (line.split() + ["", ""])[:3]
            if unit == "tokens/s":
                print(f"{name.removesuffix('_rate'):<32} {float(value):>10.1f}")


if __name__ == "__main__":
    main()
