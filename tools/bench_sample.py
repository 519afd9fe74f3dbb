#!/usr/bin/env python3
"""Times sampling from a small model on the CPU, ours beside a plain PyTorch loop over the same model: Euler steps with guidance, both
branches in one batch; then eight pictures together beside eight one after the other.

usage: PYTHON bench_sample.py SPEED    (PYTHON has torch 2.11; SPEED is our example sample_speed)

All run as whole processes, in turn; figures are medians of the runs. `--peer` runs the PyTorch loop alone, on a GPU where there is one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

ROUNDS = 5
SIZES = ["--side", "128", "--blocks", "4", "--width", "192", "--heads", "3", "--steps", "10", "--device", "cpu", "--dtype", "float32"]


def peer(arguments):
    import torch

    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from peer_train import CHANNELS, TEXT_TOKENS, Mmdit

    parser = argparse.ArgumentParser()
    for name, default in [("side", 512), ("batch", 8), ("blocks", 19), ("width", 1216), ("heads", 19), ("steps", 50)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args(arguments)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    model = Mmdit(options.width, options.heads, options.blocks, 4 * options.width, 2304, 768).to(device).eval()
    random = lambda *shape: torch.randn(shape, device=device)
    condition = [random(options.batch, TEXT_TOKENS, 2304), random(options.batch, TEXT_TOKENS, 2304), random(options.batch, 768)]
    # Guided and not, in one batch.
    both = [torch.cat([of, torch.zeros_like(of)]) for of in condition]
    noise = random(options.batch, CHANNELS, options.side // 8, options.side // 8)

    def sample(steps):
        x = noise
        for step in range(steps):
            t = torch.full((2 * options.batch,), 1 - step / steps, device=device)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                velocity, null = model(torch.cat([x, x]), t, *both).float().chunk(2)
            x = x - (null + (velocity - null) * 4.0) / steps
        if device.type == "cuda":
            torch.cuda.synchronize()
        return x

    with torch.inference_mode():
        sample(2)
        since = time.perf_counter()
        sample(options.steps)
        seconds = time.perf_counter() - since
    print(json.dumps({"program": "PyTorch", "step_ms": 1000 * seconds / options.steps, "images_per_second": options.batch / seconds}))


def step_ms(command):
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])["step_ms"]


def main():
    if len(sys.argv) > 1 and sys.argv[1] == "--peer":
        return peer(sys.argv[2:])
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    commands = {
        "ours, 8 together": [sys.argv[1], *SIZES, "--batch", "8"],
        "PyTorch, 8 together": [sys.executable, os.path.abspath(__file__), "--peer", *SIZES, "--batch", "8"],
        "ours, one": [sys.argv[1], *SIZES, "--batch", "1"],
        "PyTorch, one": [sys.executable, os.path.abspath(__file__), "--peer", *SIZES, "--batch", "1"],
    }
    times = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            times[name].append(step_ms(command))
    median = {name: statistics.median(all_of_it) for name, all_of_it in times.items()}
    for name, all_of_it in times.items():
        print(f"{name}: {median[name]:.1f} ms a step, {1000 / median[name]:.2f} steps/s (from {min(all_of_it):.1f} to {max(all_of_it):.1f})")
    print(f"PyTorch takes {median['PyTorch, 8 together'] / median['ours, 8 together']:.2f} times as long for 8, "
          f"{median['PyTorch, one'] / median['ours, one']:.2f} times for one")
    print(f"ours: 8 one after the other take {8 * median['ours, one'] / median['ours, 8 together']:.2f} times as long as together")


if __name__ == "__main__":
    main()
