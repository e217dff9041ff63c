"""Tokens per second of greedy decoding at batch 1: fledge's engine beside transformers' generate.

The 15M-parameter LLaMA shape (width 288, 6 layers, 6 heads, vocabulary 32,000), random weights, fp32, prompt of 64, 128
new tokens. fledge runs its whole engine: scheduling, sampling, text. The bar: at least 1.2 of transformers on 1 thread.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import clock, run

PROMPT, NEW = 64, 128


def folder() -> Path:
    """The same random model for both, as a folder."""
    from fledge.model.families import family, preset_family
    from fledge.model.folder import save_model
    from fledge.model.init import initialise
    from fledge.model.transformer import build

    shape = preset_family("llama-15m").presets["llama-15m"]
    path = Path(tempfile.mkdtemp())
    save_model(initialise(build(family("llama").build(shape), "cpu"), 1), path)
    return path


def transformers_generate(threads: int) -> Iterator[float]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder()).eval()
    ids = torch.arange(100, 100 + PROMPT)[None]

    def generate() -> None:
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
            )
        assert out.shape[1] == PROMPT + NEW

    generate()
    yield 0.0
    while True:
        began = clock(threads)
        generate()
        yield NEW / (clock(threads) - began)


def fledge_engine(threads: int) -> Iterator[float]:
    from fledge.engine.config import EngineConfig
    from fledge.engine.core import Engine
    from fledge.engine.request import Request, Sampling
    from fledge.engine.runner import Runner
    from fledge.model.folder import load_model
    from fledge.text.tokenizer import characters

    tokenizer = characters(
        "".join(chr(0x4E00 + i) for i in range(20_000)) + "".join(map(chr, range(0xAC00, 0xAC00 + 11_000)))
    )
    engine = Engine(Runner(load_model(folder()), n_slots=1), tokenizer, EngineConfig(n_slots=1, prefix_cache=False))
    prompt = tuple(range(100, 100 + PROMPT))
    sampling = Sampling(max_tokens=NEW, temperature=0.0, ignore_eos=True)

    def generate() -> None:
        done = engine.complete([Request("bench", prompt, sampling)])
        assert len(done[0].token_ids) == NEW

    generate()
    yield 0.0
    while True:
        began = clock(threads)
        generate()
        yield NEW / (clock(threads) - began)


if __name__ == "__main__":
    peers = {"transformers": transformers_generate, "fledge": fledge_engine}
    run(__file__, peers, "transformers", "decode", "tokens a second, prefill included")
