#!/usr/bin/env python3
"""Puts libtorch where the build looks for it: a folder with include/ and lib/, from the published torch wheels.

usage: libtorch.py DESTINATION [--cuda]

Without --cuda only what a CPU process needs is kept (torch, plus the two CUDA runtime libraries that libtorch_cpu.so
names as dependencies). libtorch_cuda.so must then not lie beside them: torch-sys would link it. With --cuda the whole
wheel and its dependencies are kept. The folder appears under its final name only when it is complete.
"""

import glob
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile

TORCH = "2.11.0"
WHEELS = [f"torch=={TORCH}", "nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85"]
CPU_LIBRARIES = {"libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libcudart.so.13", "libcupti.so.13"}


def members(wheel, everything):
    """(name in the wheel, name below DESTINATION) of each file to keep."""
    for name in wheel.namelist():
        base = os.path.basename(name)
        if not base:
            continue
        if name.startswith("torch/include/"):
            yield name, name.removeprefix("torch/")
        elif base in CPU_LIBRARIES or (everything and ".so" in base and "/lib/" in name):
            yield name, f"lib/{base}"


def main():
    arguments = [a for a in sys.argv[1:] if a != "--cuda"]
    everything = "--cuda" in sys.argv[1:]
    if len(arguments) != 1:
        sys.exit(__doc__)
    destination = os.path.abspath(arguments[0])
    parent = os.path.dirname(destination)
    os.makedirs(parent, exist_ok=True)
    free = shutil.disk_usage(parent).free
    if free < 3 << 30:
        sys.exit(f"libtorch needs 3 GB free at {parent}; {free >> 20} MB are left. Free some space and run make again.")

    with tempfile.TemporaryDirectory(dir=parent, prefix=".libtorch-") as work:
        print(f"fetching libtorch {TORCH} ({'with CUDA' if everything else 'CPU, 544 MB'}) ...", flush=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", f"{work}/wheels"]
        pip += [f"torch=={TORCH}"] if everything else ["--no-deps", *WHEELS]
        if subprocess.run(pip, check=False).returncode != 0:
            sys.exit("pip could not fetch the torch wheels: check the network or the index that pip uses, or point "
                     "LIBTORCH at a libtorch 2.11 that is already on this machine.")
        tree = f"{work}/tree"
        for path in sorted(glob.glob(f"{work}/wheels/*.whl")):
            with zipfile.ZipFile(path) as wheel:
                for name, target in members(wheel, everything):
                    target = os.path.join(tree, target)
                    os.makedirs(os.path.dirname(target), exist_ok=True)
                    with wheel.open(name) as source, open(target, "wb") as out:
                        shutil.copyfileobj(source, out, 1 << 20)
            os.remove(path)
        missing = sorted(n for n in CPU_LIBRARIES if not os.path.exists(f"{tree}/lib/{n}"))
        if missing:
            sys.exit(f"the wheels held no {', '.join(missing)}: is this an x86-64 Linux machine?")
        if not everything:
            # torch-sys links -ltorch; in the CPU layout that name is a linker script for the two real libraries.
            with open(f"{tree}/lib/libtorch.so", "w", encoding="ascii") as script:
                script.write("INPUT(-ltorch_cpu -lc10)\n")
        with open(f"{tree}/build-version", "w", encoding="ascii") as version:
            version.write(f"{TORCH}\n")
        shutil.rmtree(destination, ignore_errors=True)
        os.rename(tree, destination)
    print(f"libtorch {TORCH} is in {destination}")


if __name__ == "__main__":
    main()
