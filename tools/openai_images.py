#!/usr/bin/env python3
"""Uses an images server by OpenAI's own client, and prints what it got as JSON, for serve/tests/serve/clients.rs.

usage: PYTHON openai_images.py URL KEY FULL_URL

FULL_URL is a server whose queue is full, or empty to leave that out.
"""

import asyncio
import base64
import hashlib
import json
import sys
import urllib.request

import openai

url, key, full_url = sys.argv[1:]
client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
found = {"version": openai.__version__}


def digest(png):
    return hashlib.sha256(png).hexdigest()


def download(address):
    # Loopback is asked directly, whatever proxy the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=20) as answer:
        return answer.headers["Content-Type"], answer.read()


def refusal(call):
    """What an error is to this client."""
    try:
        call()
    except openai.APIStatusError as error:
        return {
            "class": type(error).__name__,
            "status": error.status_code,
            "param": error.param,
            "code": error.code,
            "message": error.body["message"],
            "retry_after": error.response.headers.get("retry-after"),
        }
    except openai.OpenAIError as error:
        return {"class": type(error).__name__}
    return None


models = client.models.list().data
found["models"] = [model.id for model in models]
found["retrieved"] = client.models.retrieve(models[0].id).owned_by

extra = {"steps": 6, "guidance": 3.5, "seed": 77, "negative_prompt": "fog", "sampler": "euler", "shift": 2.0}
made = client.images.generate(
    model=models[0].id, prompt="a tin lantern", n=2, size="48x32", response_format="b64_json", extra_body=extra
)
found["base64"] = [digest(base64.b64decode(image.b64_json)) for image in made.data]
found["settings"] = [image.settings for image in made.data]
found["created"] = made.created

made = client.images.generate(
    model="dall-e-3", prompt="a tin lantern", n=2, size="48x32", quality="hd", style="vivid", user="me", extra_body=extra
)
downloads = [download(image.url) for image in made.data]
found["url_types"] = [kind for kind, _ in downloads]
found["url"] = [digest(png) for _, png in downloads]

found["refusals"] = {
    "size": refusal(lambda: client.images.generate(prompt="x", size="33x32")),
    "count": refusal(lambda: client.images.generate(prompt="x", n=100)),
    "prompt": refusal(lambda: client.images.generate(prompt="")),
    "model": refusal(lambda: client.models.retrieve("another")),
    "key": refusal(lambda: client.with_options(api_key="wrong").images.generate(prompt="x")),
    "generator": refusal(lambda: client.images.generate(prompt="fail")),
    "timeout": refusal(lambda: client.with_options(timeout=0.2).images.generate(prompt="slow", extra_body={"steps": 500})),
}
if full_url:
    full = openai.OpenAI(base_url=f"{full_url}/v1", api_key=key, max_retries=0)
    found["refusals"]["full"] = refusal(lambda: full.images.generate(prompt="x"))


async def together():
    """Many at once: each must get what it asked for."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as clients:
        prompts = [f"lantern {i}" for i in range(24)]
        calls = [
            clients.images.generate(prompt=prompt, response_format="b64_json", extra_body={"seed": i})
            for i, prompt in enumerate(prompts)
        ]
        answers = await asyncio.gather(*calls)
    return [
        {"prompt": prompt, "seed": i, "png": answer.data[0].b64_json}
        for i, (prompt, answer) in enumerate(zip(prompts, answers))
    ]


found["together"] = asyncio.run(together())
print(json.dumps(found))
