#!/usr/bin/env python3
"""Times training steps of the MMDiT in plain PyTorch, as a good user of it would write them: the peer of our own trainer.

usage: peer_train.py [options]        (needs torch and safetensors; --help lists the options)

Float32 master weights under bf16 autocast, flash attention by scaled_dot_product_attention, fused AdamW, a clip of the gradient's
norm, an EMA at every step. Latents, text and noise are random and on the device already: no loader, no encoders.

Prints a line of JSON for each batch size; a batch that does not fit into memory ends the sweep and says so. The FLOPs are those
of the model: what activation checkpointing computes twice counts once.
"""

import argparse
import contextlib
import json
import os
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# Shapes: B batch, N image tokens, M text tokens, D width, H heads, K head dimension.

CHANNELS, PATCH, TEXT_TOKENS = 16, 2, 77
# Torch's default for float32, which the published models have whatever the type they run in.
EPSILON = torch.finfo(torch.float32).eps


class RmsNorm(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x):
        # The fused kernel wants input and weight of one type; autocast leaves the weight in float32.
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), EPSILON)


class Modulation(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.c_shift = nn.Linear(width, width, bias=False)
        self.c_scale = nn.Linear(width, width, bias=False)

    def forward(self, x, y):
        return F.layer_norm(x, x.shape[-1:], eps=1e-5) * (1 + self.c_scale(y)) + self.c_shift(y)


class SwiGlu(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x):
        gate, up = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * up)


class FeedForward(nn.Module):
    """Only a name: the published state dict has one level more."""

    def __init__(self, width, hidden):
        super().__init__()
        self.MLP = SwiGlu(width, hidden)

    def forward(self, x):
        return self.MLP(x)


class RotaryFrequencies(nn.Module):
    def __init__(self, head_dim):
        super().__init__()
        self.register_buffer("freqs", 10000.0 ** (-torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2)))

    def turns(self, rows, columns):
        """Angles [N, K/2]: the first half of a head's pairs turns with the row, the rest with the column."""
        row = torch.arange(rows, device=self.freqs.device).repeat_interleave(columns)
        column = torch.arange(columns, device=self.freqs.device).repeat(rows)
        return torch.cat([row[:, None] * self.freqs, column[:, None] * self.freqs], dim=-1)


def rotate_complex(x, turns):
    """Turns the interleaved pairs of x [B, N, H, K] by complex numbers [N, K/2]: the fewest kernels without a compiler."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns[:, None]).flatten(-2).to(x.dtype)


def rotate_real(x, turns):
    """The same by sines and cosines [2, N, K/2], which torch.compile fuses; it leaves complex numbers alone."""
    cos, sin = turns[:, :, None]
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, width, heads, is_last, rotate):
        super().__init__()
        self.heads, self.rotate = heads, rotate
        for stream in "xc":
            for part in ("query", "key", "value"):
                setattr(self, f"{part}_proj_{stream}", nn.Linear(width, width, bias=False))
            for part in "qk":
                setattr(self, f"{part}_norm_{stream}", RmsNorm(width // heads))
        self.out_proj_x = nn.Linear(width, width, bias=False)
        self.out_proj_c = None if is_last else nn.Linear(width, width, bias=False)
        self.rotary_emb = RotaryFrequencies(width // heads)

    def forward(self, x, c, turns):
        def split(projected):
            return projected.unflatten(-1, (self.heads, -1))

        q_x = self.rotate(self.q_norm_x(split(self.query_proj_x(x))), turns)
        k_x = self.rotate(self.k_norm_x(split(self.key_proj_x(x))), turns)
        q_c, k_c = self.q_norm_c(split(self.query_proj_c(c))), self.k_norm_c(split(self.key_proj_c(c)))
        q, k = torch.cat([q_x, q_c], dim=1), torch.cat([k_x, k_c], dim=1)
        v = torch.cat([split(self.value_proj_x(x)), split(self.value_proj_c(c))], dim=1)
        both = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        out_x, out_c = both.transpose(1, 2).flatten(2).split([x.shape[1], c.shape[1]], dim=1)
        return self.out_proj_x(out_x), None if self.out_proj_c is None else self.out_proj_c(out_c)


class Block(nn.Module):
    def __init__(self, width, heads, hidden, is_last, rotate):
        super().__init__()
        self.y_proj = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.attn = Attention(width, heads, is_last, rotate)
        self.norm1_x, self.norm1_c = Modulation(width), Modulation(width)
        # The text half of the last block ends at its keys and values: nothing reads more of it.
        for stream in "x" if is_last else "xc":
            setattr(self, f"norm2_{stream}", Modulation(width))
            setattr(self, f"MLP_{stream}", FeedForward(width, hidden))
            for i in (1, 2):
                setattr(self, f"scale{i}_{stream}", nn.Linear(width, width, bias=False))

    def forward(self, x, c, y, turns):
        y = self.y_proj(y)[:, None]
        a_x, a_c = self.attn(self.norm1_x(x, y), self.norm1_c(c, y), turns)
        x = x + a_x * self.scale1_x(y)
        x = x + self.MLP_x(self.norm2_x(x, y)) * self.scale2_x(y)
        if a_c is not None:
            c = c + a_c * self.scale1_c(y)
            c = c + self.MLP_c(self.norm2_c(c, y)) * self.scale2_c(y)
        return x, c


class PatchConvolution(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = nn.Conv2d(CHANNELS, width, PATCH, stride=PATCH, bias=False)


class Mmdit(nn.Module):
    """Parameters are called as in the published state dict."""

    def __init__(self, width, heads, blocks, hidden, text_width, pooled_width, rotate=rotate_complex):
        super().__init__()
        self.width, self.heads, self.hidden = width, heads, hidden
        self.text_width, self.pooled_width = text_width, pooled_width
        self.rotate, self.checkpointed = rotate, 0
        self.time_scale = nn.Parameter(torch.full((1,), 1000.0))
        for suffix in ("", "2"):
            setattr(self, f"learnable_scalar{suffix}", nn.Parameter(torch.ones(1)))
            setattr(self, f"pre_c_norm{suffix}", RmsNorm(text_width))
            setattr(self, f"c_proj{suffix}", nn.Linear(text_width, width, bias=False))
        self.t_emb2 = nn.Linear(width, width, bias=False)
        self.cond_MLP = nn.Linear(pooled_width, width, bias=False)
        self.pos_enc = PatchConvolution(width)
        self.patch_emb = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, i + 1 == blocks, rotate) for i in range(blocks))
        self.out_norm = Modulation(width)
        self.out_proj = nn.Linear(width, CHANNELS * PATCH * PATCH)

    def time_embedding(self, t):
        index = torch.arange(self.width, device=t.device, dtype=torch.float64)
        angles = (t * self.time_scale)[:, None] * (10000.0 ** (-2 * index / self.width)).float()
        return torch.cat([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1)

    def forward(self, x_t, t, text, text2, pooled):
        """x_t [B, 16, height, width], t [B], both texts [B, 77, text width], pooled [B, pooled width]: the velocity."""
        rows, columns = x_t.shape[2] // PATCH, x_t.shape[3] // PATCH
        x = self.patch_emb(self.pos_enc.proj(x_t).flatten(2).transpose(1, 2))
        c = torch.cat(
            [
                self.c_proj(self.learnable_scalar * self.pre_c_norm(text)),
                self.c_proj2(self.learnable_scalar2 * self.pre_c_norm2(text2)),
            ],
            dim=1,
        )
        y = self.t_emb2(self.time_embedding(t)) + self.cond_MLP(pooled)
        angles = self.blocks[0].attn.rotary_emb.turns(rows, columns)
        is_complex = self.rotate is rotate_complex
        turns = torch.polar(torch.ones_like(angles), angles) if is_complex else torch.stack([angles.cos(), angles.sin()])
        for i, block in enumerate(self.blocks):
            if self.training and i < self.checkpointed:
                # Nothing in a block is random.
                x, c = checkpoint(block, x, c, y, turns, use_reentrant=False, preserve_rng_state=False)
            else:
                x, c = block(x, c, y, turns)
        out = self.out_proj(self.out_norm(x, y[:, None]))
        patches = out.view(-1, rows, columns, CHANNELS, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
        return patches.reshape(-1, CHANNELS, rows * PATCH, columns * PATCH)

    def forward_flops(self, side):
        """FLOPs of one image's way through the model, two for each multiply-add of a matrix product."""
        d, n, m = self.width, (side // 8 // PATCH) ** 2, 2 * TEXT_TOKENS
        features = CHANNELS * PATCH * PATCH
        total = n * features * d + n * d * d + m * self.text_width * d + d * d + self.pooled_width * d
        for block in self.blocks:
            is_last = block.attn.out_proj_c is None
            # Projections of queries, keys, values and outputs; scores and sums; feed-forward.
            total += 4 * n * d * d + (3 if is_last else 4) * m * d * d + 2 * (n + m) ** 2 * d
            total += 3 * d * self.hidden * (n + (0 if is_last else m))
            # Of the condition, once an image: its own layer, two norms and two gates a stream.
            total += d * d * (1 + 4 + 2 + 2 + (0 if is_last else 4))
        return 2 * (total + 2 * d * d + n * d * features)


def check(folder):
    """The largest difference from the reference's own output, in float32, in both ways of turning pairs."""
    from safetensors.torch import load_file

    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    weights, io = (load_file(os.path.join(folder, f"{name}.safetensors")) for name in ("weights", "io"))
    text, text2 = io["text"].split(TEXT_TOKENS, dim=1)
    largest = {}
    for rotate in (rotate_complex, rotate_real):
        model = Mmdit(
            width=config["dim"],
            heads=config["num_heads"],
            blocks=config["num_blocks"],
            hidden=round(config["hidden_scale"] * config["dim"]),
            text_width=config["text_dim"],
            pooled_width=config["class_dim"],
            rotate=rotate,
        )
        model.load_state_dict(weights)
        with torch.no_grad():
            velocity = model(io["x_t"], io["t"], text, text2, io["pooled"])
        largest[rotate.__name__] = (velocity - io["v_cond"]).abs().max().item()
    print(json.dumps({"largest_difference": largest, "largest_output": io["v_cond"].abs().max().item()}))
    if max(largest.values()) >= 1e-4:
        raise SystemExit("the model differs from the reference")


class Training:
    """A model, its optimiser and its EMA."""

    def __init__(self, model, device, dtype, decay=0.9999):
        self.model, self.device, self.dtype, self.decay = model, device, dtype, decay
        self.parameters = list(model.parameters())
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, fused=True
        )
        self.ema = [parameter.detach().clone() for parameter in self.parameters]

    def batch(self, size, side):
        """Latents and what a caption's encoders give, in the type that they come in."""

        def random(*shape, dtype=torch.float32):
            return torch.randn(shape, device=self.device, dtype=dtype)

        text = [random(size, TEXT_TOKENS, self.model.text_width, dtype=self.dtype) for _ in range(2)]
        pooled = random(size, self.model.pooled_width, dtype=self.dtype)
        return random(size, CHANNELS, side // 8, side // 8), *text, pooled

    def autocast(self):
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def step(self, x0, text, text2, pooled):
        noise = torch.randn_like(x0)
        t = torch.randn(x0.shape[0], device=x0.device).sigmoid()
        x_t = torch.lerp(x0, noise, t[:, None, None, None])
        with self.autocast():
            velocity = self.model(x_t, t, text, text2, pooled)
        loss = F.mse_loss(velocity.float(), noise - x0)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.parameters, 1 - self.decay)
        return loss.detach()


class Clock:
    """Milliseconds between marks. On a GPU by its own events, so that the host runs ahead as it does in a real loop."""

    def __init__(self, device):
        self.is_cuda, self.marks = device.type == "cuda", []

    def mark(self):
        if self.is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def milliseconds(self):
        if self.is_cuda:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) for a, b in zip(self.marks, self.marks[1:])]
        return [1e3 * (b - a) for a, b in zip(self.marks, self.marks[1:])]


def measure(training, size, options):
    is_cuda = training.device.type == "cuda"
    batch = training.batch(size, options.side)
    for _ in range(options.warmup):
        loss = training.step(*batch)
    if is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    clock = Clock(training.device)
    clock.mark()
    for _ in range(options.steps):
        loss = training.step(*batch)
        clock.mark()
    times = clock.milliseconds()
    rate = 1e3 * size * len(times) / sum(times)
    forward = training.model.forward_flops(options.side)
    return {
        "batch": size,
        "side": options.side,
        "dtype": options.dtype,
        "checkpoint": options.checkpoint,
        "compile": options.compile,
        "images_per_second": round(rate, 3),
        "step_ms": round(statistics.median(times), 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3) if is_cuda else None,
        "tflops": round(3 * forward * rate / 1e12, 4),
        "forward_gflops_per_image": round(forward / 1e9, 3),
        "loss": loss.item(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if is_cuda else "cpu",
    }


def profile(training, size, options):
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    is_cuda = training.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if is_cuda else [])
    batch = training.batch(size, options.side)
    training.step(*batch)
    with profiled(activities=activities) as profiler:
        for _ in range(3):
            training.step(*batch)
        if is_cuda:
            torch.cuda.synchronize()
    order = "self_cuda_time_total" if is_cuda else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=70))


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=256, help="of the pictures, in pixels [256]")
    parser.add_argument("--batch", type=int, nargs="+", default=[32], help="images a step; several are tried in turn [32]")
    parser.add_argument("--blocks", type=int, default=19)
    parser.add_argument("--width", type=int, default=1216)
    parser.add_argument("--heads", type=int, default=19)
    parser.add_argument("--text-width", type=int, default=2304)
    parser.add_argument("--pooled-width", type=int, default=768)
    parser.add_argument("--checkpoint", type=int, default=0, help="how many of the first blocks compute their activations twice")
    parser.add_argument("--compile", action="store_true", help="torch.compile each block")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--weights", help="safetensors in the published names, to start from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", action="store_true", help="also print what takes the time of three steps, of the first batch size")
    parser.add_argument("--check", metavar="DIR", help="compare with a folder of reference numbers, and do nothing else")
    options = parser.parse_args()
    if options.steps < 1 or options.side % (8 * PATCH):
        parser.error("expected at least one step, and a side that is a multiple of 16")
    return options


def main():
    options = parse()
    if options.check:
        check(options.check)
        return
    torch.manual_seed(options.seed)
    # What is left in float32 by autocast, and all of a float32 run, may use the tensor cores.
    torch.set_float32_matmul_precision("high")
    device = torch.device(options.device)
    with device:
        model = Mmdit(
            width=options.width,
            heads=options.heads,
            blocks=options.blocks,
            hidden=4 * options.width,
            text_width=options.text_width,
            pooled_width=options.pooled_width,
            rotate=rotate_real if options.compile else rotate_complex,
        )
    if options.weights:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(options.weights))
    model.checkpointed = options.checkpoint
    if options.compile:
        for block in model.blocks:
            # In place, so that names in the state dict stay as they are; for each batch size anew, since code for sizes unknown is
            # slower.
            block.compile(dynamic=False)
    training = Training(model, device, getattr(torch, options.dtype))
    for i, size in enumerate(options.batch):
        try:
            print(json.dumps(measure(training, size, options)), flush=True)
            if options.profile and i == 0:
                profile(training, size, options)
        except RuntimeError as error:
            # cuBLAS asks for memory by itself, and has its own words.
            if not isinstance(error, torch.OutOfMemoryError) and "CUBLAS_STATUS_ALLOC_FAILED" not in str(error):
                raise
            print(json.dumps({"batch": size, "side": options.side, "out_of_memory": True}), flush=True)
            return


if __name__ == "__main__":
    main()
