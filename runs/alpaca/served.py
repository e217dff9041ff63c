"""Whether what was trained is what is served: greedy answers over HTTP from an adapter beside its base, against the
training model's own pass.

python runs/alpaca/served.py BASE RUN CONVERSATIONS [N]: `fledge serve BASE adapters=[tuned=RUN]` answers the
first turn of N conversations (default 500), eight callers at once, every other one asking the base instead. Then the
model as it was trained, base and adapter apart, one full pass over prompt and answer without a cache: at every place
its likeliest token must be the one that was served. Prints one JSON object; exit code 1 if any token differs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from fledge.batch import OneDocument, one_document
from fledge.model.folder import load_model
from fledge.model.transformer import Transformer
from fledge.text.chat import Message, renderer_for
from fledge.text.tokenizer import Tokenizer
from fledge.tune.folder import adapter_folder, base_folder, load_adapter

CALLERS, MAX_TOKENS = 8, 48


def first_turns(path: Path, n: int) -> list[str]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return ["\n".join(filter(None, (row["instruction"], row.get("input")))) for row in rows][:n]


def ask(url: str, model: str, prompt: list[int]) -> list[int]:
    """The answer's ids of prompt ids, stop token included."""
    body = {"model": model, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0, "return_token_ids": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        ids: list[int] = json.load(response)["choices"][0]["token_ids"]
    return ids


@torch.no_grad()
def differences(model: Transformer, prompt: list[int], answer: list[int]) -> tuple[int, float]:
    """(how many of an answer's tokens are not the likeliest of a full pass, the narrowest gap of two best logits)."""
    row = torch.tensor([prompt + answer[:-1]])
    logits = model(one_document(row), OneDocument())[0, len(prompt) - 1 :]
    two = logits.topk(2).values
    return int((logits.argmax(-1) != torch.tensor(answer)).sum()), float((two[:, 0] - two[:, 1]).min())


def main(base: str, run: str, conversations: Path, n: int) -> dict[str, Any]:
    folder = adapter_folder(run)
    assert folder is not None
    tokenizer = Tokenizer.load(folder)
    renderer, turns = renderer_for(tokenizer), first_turns(conversations, n)
    longest = load_model(base_folder(folder)).document_tokens - MAX_TOKENS
    prompts = [list(renderer.render((Message("user", turn),), generation_prompt=True).ids) for turn in turns]
    prompts = [prompt for prompt in prompts if len(prompt) <= longest]
    words = [sys.executable, "-m", "fledge", "serve", base, f"adapters=[tuned={run}]", "--port", "0", "--json"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        with urllib.request.urlopen(f"{url}/v1/models") as response:
            names = [card["id"] for card in json.load(response)["data"]]
        with ThreadPoolExecutor(CALLERS) as callers:
            both = [[callers.submit(ask, url, name, prompt) for name in names] for prompt in prompts]
            answers = [[one.result() for one in pair] for pair in both]
    finally:
        server.terminate()
        server.wait()
    models = [load_model(base_folder(folder)), load_adapter(load_model(base_folder(folder)), folder)]
    found = []
    for model, name, place in zip(models, names, (0, 1), strict=True):
        each = [differences(model.eval(), p, pair[place]) for p, pair in zip(prompts, answers, strict=True)]
        tokens = sum(len(pair[place]) for pair in answers)
        wrong, gaps = sum(one for one, _ in each), [gap for _, gap in each]
        told = {"model": name, "conversations": len(each), "tokens": tokens}
        found.append({**told, "different": wrong, "narrowest_gap": min(gaps)})
    changed = sum(pair[0] != pair[1] for pair in answers)
    return {"served": found, "answers_that_the_adapter_changes": changed}


if __name__ == "__main__":
    told = main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 500)
    print(json.dumps(told))
    sys.exit(any(one["different"] for one in told["served"]))
