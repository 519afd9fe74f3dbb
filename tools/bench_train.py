#!/usr/bin/env python3
"""Times training steps of a small model on the CPU, ours beside plain PyTorch: the same model, batch, optimiser and average.

usage: PYTHON bench_train.py SPEED    (PYTHON has torch 2.11; SPEED is our example of that name)

Both run as whole processes, in turn; a step's time is the median of the runs' means, without the first steps.
"""

import json
import os
import statistics
import subprocess
import sys

ROUNDS = 5
SIZES = ["--side", "128", "--batch", "32", "--blocks", "4", "--width", "192", "--heads", "3"]
HOW = ["--dtype", "float32", "--device", "cpu", "--steps", "10", "--warmup", "3"]


def step_ms(command):
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])["step_ms"]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    peer = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peer_train.py")
    commands = {"ours": [sys.argv[1], *SIZES, *HOW], "PyTorch": [sys.executable, peer, *SIZES, *HOW]}
    times = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            times[name].append(step_ms(command))
    medians = {name: statistics.median(all_of_it) for name, all_of_it in times.items()}
    for name, all_of_it in times.items():
        print(f"{name}: {medians[name]:.0f} ms a step (from {min(all_of_it):.0f} to {max(all_of_it):.0f})")
    print(f"PyTorch takes {medians['PyTorch'] / medians['ours']:.2f} times as long")


if __name__ == "__main__":
    main()
