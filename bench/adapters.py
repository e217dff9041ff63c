"""Tokens a second of eight answers at once: the base alone, all beside one adapter, each beside another, and merged.

A LLaMA shape of 15M (width 288, 6 layers) and GPT-2's 124M with LoRA of rank 16 on every linear map; greedy, prompts of
64 tokens, 64 new tokens. CPU time on one thread, seven alternating rounds, each peer in its own process.
`python bench/adapters.py [small|gpt2]`.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import clock, compare, keep, peer_process, ratio, summary

ANSWERS, PROMPT_TOKENS, NEW_TOKENS, ROUNDS, RANK = 8, 64, 64, 7, 16
PEERS = ("base", "one adapter", "eight adapters", "merged")
SHAPES = {
    "small": ("llama", {"width": 288, "layers": 6, "heads": 6, "hidden": 768, "vocab_size": 32000}),
    "gpt2": ("gpt2", {"width": 768, "layers": 12, "heads": 12, "vocab_size": 50257}),
}


def measured(shape: str, peer: str, threads: int) -> Iterator[float]:
    """Tokens a second of one engine."""
    import torch

    from fledge.engine.config import EngineConfig
    from fledge.engine.core import Engine
    from fledge.engine.request import Request, Sampling
    from fledge.engine.runner import Runner
    from fledge.model.config import ShapeConfig
    from fledge.model.families import family
    from fledge.model.folder import load_model, save_model
    from fledge.model.init import initialise
    from fledge.model.transformer import build
    from fledge.nn.native import library
    from fledge.text.tokenizer import byte_level
    from fledge.tune.attach import tune
    from fledge.tune.config import TuneConfig
    from fledge.tune.folder import save_adapter
    from fledge.tune.merge import served

    library.build()
    name, fields = SHAPES[shape]
    how = TuneConfig("lora", RANK, 2 * RANK, targets=("all-linear",))
    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "base"
        save_model(
            initialise(build(family(name).build(ShapeConfig(name, context_tokens=256, **fields)), "cpu"), 1), base
        )
        tuned = tune(load_model(base), how)
        generator = torch.Generator().manual_seed(1)
        for parameter in (one for one in tuned.parameters() if one.requires_grad):
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
        save_adapter(tuned, Path(place) / "adapter", how, base)
        model = served(tuned) if peer == "merged" else load_model(base)
        runner = Runner(model, ANSWERS, folder=base)
        assert runner.compiled is not None, runner.why_torch
        engine = Engine(runner, byte_level(), EngineConfig(n_slots=ANSWERS, prefix_cache=False))
        for number in range({"one adapter": 1, "eight adapters": ANSWERS}.get(peer, 0)):
            engine.load_adapter(str(number), str(Path(place) / "adapter"))
    names = sorted(engine.shelf.keys) or [""]
    ids = torch.randint(250, (ANSWERS, PROMPT_TOKENS), generator=torch.Generator().manual_seed(2)).tolist()
    sampling = Sampling(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)

    def generate() -> None:
        engine.complete(
            [Request(str(n), tuple(row), sampling, adapter=names[n % len(names)]) for n, row in enumerate(ids)]
        )

    generate()
    yield 0.0
    while True:
        began = clock(threads)
        generate()
        yield ANSWERS * NEW_TOKENS / (clock(threads) - began)


def main(shapes: list[str]) -> None:
    results = {}
    for shape in shapes:
        figures = compare(__file__, [f"{shape}|{peer}" for peer in PEERS], 1, ROUNDS)
        named = {name.split("|")[1]: values for name, values in figures.items()}
        results[shape] = {**summary(named, "base"), "eight / one": ratio(named, "eight adapters", "one adapter")}
    keep("adapters", {"unit": "tokens a second of CPU time, one thread", "rank": RANK, "results": results})


if __name__ == "__main__":
    if "--peer" in sys.argv:
        words = sys.argv
        shape, peer = words[words.index("--peer") + 1].split("|")
        both = f"{shape}|{peer}"
        peer_process({both: functools.partial(measured, shape, peer)}, both, int(words[words.index("--threads") + 1]))
    else:
        main(sys.argv[1:] or list(SHAPES))
