#!/usr/bin/env python3
"""Captions by transformers: the peer of the captioner in this process, on the same model, pictures and prompt.

usage: peer_captions.py make DIR [--tiny]
       peer_captions.py pictures DIR N
       peer_captions.py generate DIR PICTURES [options]      (--help lists them)

`make` writes a LLaVA-NeXT of Llama 3 8B and CLIP L/14 in its published layout and sizes, its weights random: how fast a model is
does not depend on what it says. Both sides read the folder. `pictures` writes noisy pictures, and the request about them, which
both sides read too. `generate` prints a line of JSON for each batch size; one that does not fit into memory ends the sweep.

No answer ends early. The output rows of all special tokens are zero, so their logits are exactly 0, while the others' are spread
around 0, and the largest of thousands of them is far above it: greedy decoding never takes a token that ends an answer. Each answer
has just as many tokens as are asked for.
"""

import argparse
import concurrent.futures
import gc
import json
import os
import time

import torch

SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, and "
    "assist the user with a variety of tasks using natural language."
)
PROMPT = (
    "Describe this image in detail in one paragraph. Say what is in it, where it is, what it looks like, the colours, the light "
    "and the style. Do not guess at what cannot be seen, and do not begin with words about the image itself."
)

# As the published folders have it: turns in parts, images before texts.
TEMPLATE = (
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MEAN = [0.48145466, 0.4578275, 0.40821073]
DEVIATION = [0.26862954, 0.26130258, 0.27577711]

PATCH = {"patch_size": 14}
FULL = {
    # Tokens of texts; 256 special ones, the image's and the padding follow.
    "texts": 128_000,
    "vocabulary": 128_320,
    "tile": 336,
    "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16} | PATCH,
    "text": {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    },
}
TINY = {
    "texts": 2000,
    "vocabulary": 2304,
    "tile": 56,
    "vision": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4} | PATCH,
    "text": {
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    },
}

# Bytes of a file of weights, about.
SHARD = 4 << 30
# Pictures that are put through the vision tower at a time: it keeps the states of all its layers.
AT_ONCE = 64


def special_tokens():
    """Llama 3's, in their order."""
    reserved = (f"<|reserved_special_token_{i}|>" for i in range(251))
    named = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>", 9: "<|eot_id|>"}
    return [named.get(i) or next(reserved) for i in range(256)] + ["<image>", "<pad>"]


def tokenizer_json(sizes):
    """A byte-level BPE that knows the words of the request, so that its prompt is about as long as Llama 3's own makes it. The rest
    of the vocabulary are names that no merge leads to."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=sizes["texts"], initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([SYSTEM, PROMPT, "system user assistant\n\n\n"], trainer)
    file = json.loads(trained.to_str())
    vocabulary = file["model"]["vocab"]
    for i in range(len(vocabulary), sizes["texts"]):
        vocabulary[f"token{i}"] = i
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    file["added_tokens"] = []
    for i, content in enumerate(special_tokens(), sizes["texts"]):
        vocabulary[content] = i
        file["added_tokens"].append({"id": i, "content": content, **plain})
    file["decoder"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return file


def write_json(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=None if name == "tokenizer.json" else 1)


def write_settings(folder, sizes):
    side, begin = sizes["tile"], sizes["texts"]
    # An image's sizes, (height, width), in tiles.
    pinpoints = [[side * rows, side * columns] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
    ends = {"bos_token_id": begin, "eos_token_id": begin + 9, "pad_token_id": begin + 257}
    text = {"model_type": "llama", "vocab_size": sizes["vocabulary"], "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, **ends}
    vision = {"model_type": "clip_vision_model", "image_size": side, "hidden_act": "quick_gelu", "projection_dim": 768}
    config = {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "model_type": "llava_next",
        "dtype": "bfloat16",
        "image_grid_pinpoints": pinpoints,
        "image_token_index": begin + 256,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "text_config": text | sizes["text"],
        "vision_config": vision | sizes["vision"],
    }
    write_json(folder, "config.json", config)
    write_json(folder, "generation_config.json", ends)
    preparation = {
        "image_processor_type": "LlavaNextImageProcessor",
        "processor_class": "LlavaNextProcessor",
        "image_grid_pinpoints": pinpoints,
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": MEAN,
        "image_std": DEVIATION,
    }
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_pad")
    write_json(folder, "preprocessor_config.json", preparation | dict.fromkeys(steps, True))
    processor = {
        "processor_class": "LlavaNextProcessor",
        "image_token": "<image>",
        "patch_size": sizes["vision"]["patch_size"],
        # The class token, which the strategy takes away again.
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    }
    write_json(folder, "processor_config.json", processor)
    write_json(folder, "tokenizer.json", tokenizer_json(sizes))
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "LlavaNextProcessor",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "pad_token": "<pad>",
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": sizes["text"]["max_position_embeddings"],
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(folder, "tokenizer_config.json", tokenizer)
    with open(os.path.join(folder, "chat_template.jinja"), "w", encoding="utf-8") as file:
        file.write(TEMPLATE)


def weight(name, shape, sizes, generator):
    """A parameter in bf16, on the generator's device."""
    like = {"dtype": torch.bfloat16, "device": generator.device}
    if len(shape) == 1 and name.endswith(".weight"):
        return torch.ones(shape, **like)
    if name.endswith(".bias"):
        return torch.zeros(shape, **like)
    values = torch.empty(shape, **like).normal_(0, 0.02, generator=generator)
    if name == "lm_head.weight":
        # What ends an answer, and all that is no text, is never the likeliest.
        values[sizes["texts"] :] = 0
    return values


def make(options):
    from safetensors.torch import save_file
    from transformers import AutoConfig, LlavaNextForConditionalGeneration

    start = time.perf_counter()
    sizes = TINY if options.tiny else FULL
    os.makedirs(options.dir, exist_ok=True)
    write_settings(options.dir, sizes)
    with torch.device("meta"):
        model = LlavaNextForConditionalGeneration(AutoConfig.from_pretrained(options.dir))
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items() if not name.endswith("position_ids")}
    shards, filled = [[]], 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        if shards[-1] and filled + size > (SHARD >> 13 if options.tiny else SHARD):
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    generator = torch.Generator("cuda" if torch.cuda.is_available() else "cpu").manual_seed(0)
    files = {}
    # Files are written while the next are made.
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        written = []
        for i, names in enumerate(shards, 1):
            file = f"model-{i:05}-of-{len(shards):05}.safetensors"
            files |= dict.fromkeys(names, file)
            tensors = {name: weight(name, shapes[name], sizes, generator).cpu() for name in names}
            written.append(pool.submit(save_file, tensors, os.path.join(options.dir, file), {"format": "pt"}))
            del tensors
        for each in written:
            each.result()
    elements = sum(torch.Size(shape).numel() for shape in shapes.values())
    write_json(options.dir, "model.safetensors.index.json", {"metadata": {"total_size": 2 * elements}, "weight_map": files})
    seconds = round(time.perf_counter() - start, 1)
    print(json.dumps({"parameters": elements, "files": len(shards), "seconds": seconds}))


def pictures(options):
    import numpy
    from PIL import Image

    os.makedirs(options.dir, exist_ok=True)
    y, x = numpy.mgrid[0:480, 0:640].astype(numpy.float32)
    for i in range(options.count):
        random = numpy.random.default_rng(i)
        waves = [127 + 100 * numpy.sin(x / (20 + 3 * c + i % 7) + y / (31 + i % 11)) for c in range(3)]
        pixels = numpy.stack(waves, axis=-1) + random.normal(0, 12, (480, 640, 3))
        picture = Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8))
        picture.save(os.path.join(options.dir, f"{i:05}.jpg"), quality=90)
    write_json(options.dir, "request.json", {"system": SYSTEM, "prompt": PROMPT})


class Peer:
    """The model, and how a batch is made ready for it."""

    def __init__(self, folder, device):
        from transformers import AutoProcessor, LlavaImageProcessor, LlavaNextForConditionalGeneration

        self.device = torch.device(device)
        self.dtype = torch.bfloat16
        self.model = LlavaNextForConditionalGeneration.from_pretrained(
            folder, dtype=self.dtype, device_map=device, attn_implementation="sdpa"
        ).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        side = self.model.config.vision_config.image_size
        # LLaVA 1.5's own: a square with borders of the mean colour, one tile.
        self.square = LlavaImageProcessor(
            do_pad=True,
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_mean=MEAN,
            image_std=DEVIATION,
        )

    def prompt(self, request):
        def turn(role, *content):
            return {"role": role, "content": list(content)}

        text = {name: {"type": "text", "text": request[name]} for name in ("system", "prompt")}
        turns = [turn("system", text["system"]), turn("user", {"type": "image"}, text["prompt"])]
        # The template leaves the first token to the tokenizer, and this tokenizer to us.
        return "<|begin_of_text|>" + self.processor.apply_chat_template(turns, add_generation_prompt=True)

    def prepare(self, images, request, mode):
        """What generate takes, on the host."""
        prompt = self.prompt(request)
        if mode == "anyres":
            return self.processor(images=images, text=[prompt] * len(images), return_tensors="pt")
        config = self.model.config
        patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        # A newline ends the tile, as in the model's own code for images of one tile.
        ids = self.processor.tokenizer(prompt.replace("<image>", "<image>" * (patches + 1)), add_special_tokens=False).input_ids
        pixels = self.square(images, return_tensors="pt").pixel_values
        return {"input_ids": torch.tensor([ids] * len(images)), "pixel_values": pixels}

    def embed(self, batch):
        """The prompts' embeddings with one tile an image in its place, which the model's own forward has no way to take."""
        inner = self.model.model
        tiles = []
        for pixels in batch["pixel_values"].split(AT_ONCE):
            states = inner.vision_tower(pixels, output_hidden_states=True).hidden_states
            tiles.append(inner.multi_modal_projector(states[self.model.config.vision_feature_layer][:, 1:]))
        tiles = torch.cat(tiles)
        tiles = torch.cat([tiles, inner.image_newline.expand(len(tiles), 1, -1)], dim=1)
        embeddings = self.model.get_input_embeddings()(batch["input_ids"])
        place = (batch["input_ids"] == self.model.config.image_token_id)[..., None]
        return embeddings.masked_scatter(place, tiles.to(embeddings.dtype))

    @torch.inference_mode()
    def generate(self, batch, mode, new):
        """The answers' tokens, (images, new)."""
        batch = {name: value.to(self.device) for name, value in batch.items()}
        batch["pixel_values"] = batch["pixel_values"].to(self.dtype)
        how = {"do_sample": False, "min_new_tokens": new, "max_new_tokens": new}
        if mode == "anyres":
            return self.model.generate(**batch, **how)[:, batch["input_ids"].shape[1] :]
        mask = torch.ones_like(batch["input_ids"])
        return self.model.generate(inputs_embeds=self.embed(batch), attention_mask=mask, **how)


def read_pictures(folder):
    from PIL import Image

    names = sorted(name for name in os.listdir(folder) if name.endswith(".jpg"))
    with open(os.path.join(folder, "request.json"), encoding="utf-8") as file:
        request = json.load(file)

    def read(i):
        with Image.open(os.path.join(folder, names[i % len(names)])) as picture:
            return picture.convert("RGB")

    return read, request


def is_out_of_memory(error):
    # cuBLAS asks for memory by itself, and has its own words.
    return isinstance(error, torch.OutOfMemoryError) or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)


def measure(peer, read, request, mode, size, options):
    is_cuda = peer.device.type == "cuda"
    if is_cuda:
        # Blocks of other sizes would be in the way of this one's.
        gc.collect()
        torch.cuda.empty_cache()
    batches = max(1, -(-options.images // size))
    start = time.perf_counter()
    # Before the clock starts: a loader would do it meanwhile, on processors that are idle.
    ready = [peer.prepare([read(b * size + i) for i in range(size)], request, mode) for b in range(batches)]
    prepared = time.perf_counter() - start
    peer.generate(ready[0], mode, 8)
    if is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for batch in ready:
        answers = peer.generate(batch, mode, options.new)
        # What a caller does with them needs them here.
        answers = answers.cpu()
        if tuple(answers.shape) != (size, options.new):
            raise SystemExit(f"answers of shape {tuple(answers.shape)}: they ended early")
    seconds = time.perf_counter() - start
    images = size * batches
    prompt = ready[0]["input_ids"].shape[1]
    return {
        "who": "transformers",
        "mode": mode,
        "batch": size,
        "images": images,
        "images_per_second": round(images / seconds, 3),
        "new_tokens_per_second": round(images * options.new / seconds, 1),
        "prompt_tokens_per_second": round(images * prompt / seconds, 1),
        "prompt_tokens": prompt,
        "seconds": round(seconds, 3),
        "prepare_seconds": round(prepared, 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if is_cuda else None,
        "device": torch.cuda.get_device_name() if is_cuda else "cpu",
    }


def generate(options):
    import transformers

    transformers.utils.logging.set_verbosity_error()
    start = time.perf_counter()
    peer = Peer(options.dir, options.device)
    read, request = read_pictures(options.pictures)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"loaded_in": round(time.perf_counter() - start, 1), **versions}), flush=True)
    for mode in options.mode:
        for size in options.batch:
            try:
                line = measure(peer, read, request, mode, size, options)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                print(json.dumps({"who": "transformers", "mode": mode, "batch": size, "out_of_memory": True}), flush=True)
                break
            print(json.dumps(line), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("make", help="write a model folder")
    command.add_argument("dir")
    command.add_argument("--tiny", action="store_true", help="for tests: three narrow layers of everything")
    command.set_defaults(run=make)
    command = commands.add_parser("pictures", help="write pictures and the request about them")
    command.add_argument("dir")
    command.add_argument("count", type=int)
    command.set_defaults(run=pictures)
    command = commands.add_parser("generate", help="time the captions of pictures")
    command.add_argument("dir")
    command.add_argument("pictures")
    command.add_argument("--batch", type=int, nargs="+", default=[1, 16, 32, 64, 128, 256])
    command.add_argument("--mode", nargs="+", choices=("pad", "anyres"), default=["pad"])
    command.add_argument("--new", type=int, default=180, help="tokens of each answer [180]")
    command.add_argument("--images", type=int, default=0, help="at least so many for each batch size [one batch]")
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    command.set_defaults(run=generate)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
