#!/usr/bin/env python3
"""Writes models/tests/fixtures/inception: what pytorch-fid and torch-fidelity compute with weights and pictures of a formula.

usage: reference_inception.py [--weights FILE] [--time]

Needs torch, torchvision, numpy and safetensors, and pytorch-fid 0.3 and torch-fidelity 0.4, which run on them unchanged. The
published weights, 96 megabytes, are neither needed nor fetched: the state dict is filled by weight() below, which
models/tests/models/inception.rs has too, and goes through the strict loading of both programs. With --weights it is written
to FILE as well, in the format of the published file (torch.save before 1.6). With --time nothing is written: the best of
five runs of pytorch-fid's network on one picture of 299 x 299 pixels, on one thread.
"""

import argparse
import os
import tempfile
import time

import numpy
import pytorch_fid.inception
import safetensors.torch
import torch
import torchvision
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

FOLDER = os.path.join(os.path.dirname(__file__), "..", "models", "tests", "fixtures", "inception")
NORM = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


def noise(name, count):
    """Numbers from -1 to 1 that depend on the name and on their place: integers of 32 bits, exact in float64."""
    seed = 2166136261
    for byte in name.encode():
        seed = ((seed ^ byte) * 16777619) % 2**32
    with numpy.errstate(over="ignore"):
        hashed = (numpy.arange(count, dtype=numpy.uint32) + numpy.uint32(seed)) * numpy.uint32(2654435761)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            hashed = (hashed ^ (hashed >> numpy.uint32(shift))) * numpy.uint32(factor)
        hashed ^= hashed >> numpy.uint32(16)
    return hashed.astype(numpy.float64) / 2**31 - 1


def weight(name, shape):
    """The tensor of that name. The norms take the means away and so keep pictures apart, which ReLUs make alike."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1)
    inputs = int(numpy.prod(shape[1:]))
    start, scale = {
        "conv.weight": (0, (6 / inputs) ** 0.5),
        "fc.weight": (0, (3 / inputs) ** 0.5),
        "fc.bias": (0, 0.1),
        "bn.weight": (1.2, 0.25),
        "bn.bias": (-0.3, 0.1),
        "bn.running_mean": (0, 0.1),
        "bn.running_var": (1, 0.5),
    }[".".join(name.split(".")[-2:])]
    values = start + scale * noise(name, int(numpy.prod(shape)))
    return torch.from_numpy(values.astype(numpy.float32)).reshape(shape)


def pictures(batch, height, width):
    """8-bit RGB pictures (batch, 3, height, width), with edges and slopes."""
    b, c, y, x = numpy.ogrid[:batch, :3, :height, :width]
    values = 97 * b + 61 * c + (3 + b) * x + 5 * y + x * y // (4 + c)
    return torch.from_numpy((values % 256).astype(numpy.uint8))


def state_dict():
    network = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
    return {name: weight(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()}


def key_list(state):
    """A line for each convolution, which stands for its six tensors, and for each other tensor."""
    lines = []
    for name, tensor in state.items():
        if name.endswith(".conv.weight"):
            layer = name.removesuffix(".conv.weight")
            assert all(f"{layer}.bn.{part}" in state for part in NORM)
            lines.append(f"{layer} {list(tensor.shape)}")
        elif ".bn." not in name:
            lines.append(f"{name} {list(tensor.shape)}")
    layers = sum(not line.startswith("fc.") for line in lines)
    assert len(state) == layers * 6 + 2 and len(lines) == layers + 2
    return "".join(line + "\n" for line in lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights")
    parser.add_argument("--time", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)

    state = state_dict()
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: state
    network = pytorch_fid.inception.InceptionV3([3]).eval()

    def features(pixels):
        return network(pixels.float() / 255)[0].flatten(1)

    if arguments.time:
        picture = pictures(1, 299, 299)
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            features(picture)
            seconds.append(time.perf_counter() - start)
        print(f"pytorch_fid_299 {min(seconds[1:]) * 1000:.0f} ms")
        return

    with tempfile.TemporaryDirectory() as folder:
        path = arguments.weights or os.path.join(folder, "weights.pth")
        torch.save(state, path, _use_new_zipfile_serialization=False)
        fidelity = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=path
        )
    tensorflow, logits = fidelity(pictures(1, 64, 48))
    os.makedirs(FOLDER, exist_ok=True)
    results = {
        "pytorch_fid": features(pictures(2, 64, 48)),
        "pytorch_fid_299": features(pictures(1, 299, 299)),
        "torch_fidelity": tensorflow,
        "torch_fidelity_logits": logits,
    }
    for name, tensor in results.items():
        print(f"{name}: {list(tensor.shape)}, mean {tensor.mean():.4f}, deviation {tensor.std():.4f}")
    print("difference of the two pictures:", (results["pytorch_fid"][0] - results["pytorch_fid"][1]).abs().mean().item())
    print("difference of the two resizes:", (results["pytorch_fid"][:1] - tensorflow).abs().mean().item())
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in results.items()}, os.path.join(FOLDER, "features.safetensors")
    )
    with open(os.path.join(FOLDER, "state_dict.txt"), "w", encoding="utf-8") as file:
        file.write(key_list(state))


if __name__ == "__main__":
    main()
