#!/usr/bin/env python3
"""Times the parts that `cargo bench -p ferrotype-models` times, in eager PyTorch on the CPU.

usage: bench_torch.py [NAME...]        (in the environment of `make peers`; without names, all)

Prints a line `name median_milliseconds` each: two warm-up runs, then the median of seven
(FERROTYPE_BENCH_RUNS overrides). Float32, two threads. Forward runs under no_grad; backward starts from fixed
gradients of the outputs and reaches the inputs and every weight, whose gradients are dropped before each run.
"""

import os
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, HEADS, HIDDEN = 1216, 19, 4864
ROWS, COLUMNS, TEXT = 16, 16, 154
WARM_UP = 2
RUNS = max(1, int(os.environ.get("FERROTYPE_BENCH_RUNS", "7")))

# Shapes: B batch, N image tokens, M text tokens, D width, H heads, K head dimension.


def rope_2d(rows, columns, head_dim):
    """cos and sin, each [N, K/2]: one angle a pair; the first half of the pairs turns with the row, the rest with the column."""
    frequencies = 10000.0 ** (-torch.arange(0, head_dim // 2, 2) / (head_dim / 2))
    row = torch.arange(rows).repeat_interleave(columns)
    column = torch.arange(columns).repeat(rows)
    angles = torch.cat([row[:, None] * frequencies, column[:, None] * frequencies], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turns the interleaved pairs of x [B, H, N, K]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        for stream in "xc":
            for part in ("query", "key", "value", "out"):
                setattr(self, f"{part}_proj_{stream}", nn.Linear(width, width, bias=False))
            for part in "qk":
                setattr(self, f"{part}_norm_{stream}", nn.RMSNorm(width // heads, eps=1.1920929e-7))

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x, c, rope):
        q_x = rotate(self.q_norm_x(self.split(self.query_proj_x(x))), *rope)
        k_x = rotate(self.k_norm_x(self.split(self.key_proj_x(x))), *rope)
        q_c = self.q_norm_c(self.split(self.query_proj_c(c)))
        k_c = self.k_norm_c(self.split(self.key_proj_c(c)))
        q = torch.cat([q_x, q_c], dim=2)
        k = torch.cat([k_x, k_c], dim=2)
        v = torch.cat([self.split(self.value_proj_x(x)), self.split(self.value_proj_c(c))], dim=2)
        both = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out_x, out_c = both.split([x.shape[1], c.shape[1]], dim=1)
        return self.out_proj_x(out_x), self.out_proj_c(out_c)


class SwiGlu(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x):
        gate, up = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * up)


class Modulation(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.c_shift = nn.Linear(width, width, bias=False)
        self.c_scale = nn.Linear(width, width, bias=False)

    def forward(self, x, y):
        return F.layer_norm(x, x.shape[-1:], eps=1e-5) * (1 + self.c_scale(y)) + self.c_shift(y)


class Block(nn.Module):
    def __init__(self, width, heads, hidden):
        super().__init__()
        self.y_proj = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.attn = Attention(width, heads)
        for stream in "xc":
            setattr(self, f"MLP_{stream}", SwiGlu(width, hidden))
            for i in (1, 2):
                setattr(self, f"norm{i}_{stream}", Modulation(width))
                setattr(self, f"scale{i}_{stream}", nn.Linear(width, width, bias=False))

    def forward(self, x, c, y, rope):
        y = self.y_proj(y)[:, None]
        a_x, a_c = self.attn(self.norm1_x(x, y), self.norm1_c(c, y), rope)
        x = x + a_x * self.scale1_x(y)
        c = c + a_c * self.scale1_c(y)
        x = x + self.MLP_x(self.norm2_x(x, y)) * self.scale2_x(y)
        c = c + self.MLP_c(self.norm2_c(c, y)) * self.scale2_c(y)
        return x, c


def autoencoder():
    """diffusers' AutoencoderKL as FLUX.1 configures it, with random weights."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        norm_num_groups=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=True,
    ).eval()


def forward(module, *inputs):
    def once():
        with torch.no_grad():
            module(*inputs)

    return once


def forward_backward(module, leaves, *rest):
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    with torch.no_grad():
        gradients = [torch.randn_like(out) for out in module(*leaves, *rest)]

    def once():
        module.zero_grad(set_to_none=True)
        for leaf in leaves:
            leaf.grad = None
        torch.autograd.backward(module(*leaves, *rest), gradients)

    return once


def median_milliseconds(once):
    for _ in range(WARM_UP):
        once()
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        once()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def benches():
    """(name, function that prepares the run): prepared one at a time, so that only one model is in memory."""
    x, c, y = torch.randn(1, ROWS * COLUMNS, WIDTH), torch.randn(1, TEXT, WIDTH), torch.randn(1, WIDTH)
    rope = rope_2d(ROWS, COLUMNS, WIDTH // HEADS)
    picture, latent = torch.rand(1, 3, 128, 128) * 2 - 1, torch.randn(1, 16, 16, 16)
    yield "mmdit_block_forward", lambda: forward(Block(WIDTH, HEADS, HIDDEN), x, c, y, rope)
    yield "mmdit_block_forward_backward", lambda: forward_backward(Block(WIDTH, HEADS, HIDDEN), [x, c, y], rope)
    yield "attention_forward", lambda: forward(Attention(WIDTH, HEADS), x, c, rope)
    yield "attention_forward_backward", lambda: forward_backward(Attention(WIDTH, HEADS), [x, c], rope)
    yield "vae_decode", lambda: forward(autoencoder().decode, latent)
    yield "vae_encode", lambda: forward(autoencoder().encode, picture)


def main():
    wanted = sys.argv[1:]
    if any(name.startswith("-") for name in wanted):
        sys.exit(__doc__)
    torch.set_num_threads(2)
    torch.manual_seed(0)
    for name, prepare in benches():
        if not wanted or name in wanted:
            print(f"{name} {median_milliseconds(prepare()):.2f}", flush=True)


if __name__ == "__main__":
    main()
