#!/usr/bin/env python3
"""llama.cpp's own HTTP server over one small model: a real OpenAI-compatible server for the tests and the demo.

usage: caption_server.py MODEL.gguf [--name NAME] [--port PORT] [--slots N] [-- COMMAND ...]

With a COMMAND, runs it once the server answers, with {endpoint} in its words replaced by the server's address, and ends as it
ends. Without one, prints the address and serves until its standard input ends. Listens on loopback only; port 0 takes a free
one. /health answers 503 while the model loads, /metrics counts tokens.
"""

import argparse
import os
import signal
import subprocess
import sys

# One thread for each core; where another program needs a core, they are to sleep until all have come, not to wait in a loop.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Tokens of a question and its answer.
CONTEXT = 512


def start(arguments):
    """The server, once it answers."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = arguments.model
    parameters.model_alias = {arguments.name}
    parameters.port = arguments.port
    parameters.n_parallel = arguments.slots
    parameters.n_ctx = CONTEXT * arguments.slots
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = os.cpu_count() or 1
    # Prompts of slots that were taken by others are not kept.
    parameters.cache_ram_mib = 0
    parameters.endpoint_metrics = True
    parameters.ui = False
    parameters.verbosity = 0
    return xllamacpp.Server(parameters)


def main():
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1].split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--name", default="smollm2-135m")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--slots", type=int, default=4)
    arguments = parser.parse_args(words[:split])
    if not os.path.exists(arguments.model):
        sys.exit(f"{arguments.model} is not there; `make files` fetches the model of the tests")
    try:
        server = start(arguments)
    except (ImportError, RuntimeError) as error:
        sys.exit(f"no caption server: {error}")
    endpoint = f"{server.listening_address}/v1"
    command = [word.replace("{endpoint}", endpoint) for word in words[split + 1 :]]
    if command:
        # The terminal interrupts the command too, and how that ends is for it to say.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = subprocess.run(command, check=False, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)).returncode
    else:
        print(endpoint, flush=True)
        try:
            while sys.stdin.buffer.read(4096):
                pass
        except KeyboardInterrupt:
            pass
        code = 0
    # At once: nothing is written that could be lost, and nobody waits for an answer any more.
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
