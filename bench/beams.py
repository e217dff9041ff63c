"""Seconds of a decoding step of four answers: alone, and while a beam search goes on beside them.

A LLaMA shape of 15M (width 288, 6 layers, 32,000 tokens), float32; greedy answers to prompts of 64 tokens, a search of
4 or 16 beams over a prompt of 64. Whoever streams sees this as the time between two tokens. CPU time on one thread,
seven alternating rounds, each peer in its own process; a figure is the mean of 48 steps. `python bench/beams.py`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator

from harness import clock, compare, keep, peer_process, summary

ANSWERS, PROMPT_TOKENS, STEPS, ROUNDS = 4, 64, 48, 7
PEERS = ("alone", "4 beams", "16 beams", "4 answers more")


def measured(peer: str, threads: int) -> Iterator[float]:
    """Seconds of a step of one engine."""
    import torch

    from fledge.engine.config import EngineConfig
    from fledge.engine.core import Engine
    from fledge.engine.request import BeamSearch, Request, Sampling
    from fledge.engine.runner import Runner
    from fledge.model.config import ShapeConfig
    from fledge.model.families import family
    from fledge.model.init import initialise
    from fledge.model.transformer import build
    from fledge.nn.native import library
    from fledge.text.tokenizer import characters

    library.build()
    shape = ShapeConfig("llama", width=288, layers=6, heads=6, hidden=768, vocab_size=32000, context_tokens=256)
    n_beams = {"4 beams": 4, "16 beams": 16}.get(peer, 0)
    n_answers = ANSWERS * 2 if peer == "4 answers more" else ANSWERS
    runner = Runner(initialise(build(family("llama").build(shape), "cpu"), 1), n_answers + n_beams)
    assert runner.compiled is not None, runner.why_torch
    tokenizer = characters("".join(chr(0x4E00 + i) for i in range(20_000)) + "".join(map(chr, range(0xAC00, 0xD6F8))))
    engine = Engine(runner, tokenizer, EngineConfig(n_slots=n_answers + n_beams, prefix_cache=False))
    ids = torch.randint(30_000, (n_answers + 1, PROMPT_TOKENS), generator=torch.Generator().manual_seed(2)).tolist()
    most = 2 * STEPS
    greedy = Sampling(max_tokens=most, temperature=0, ignore_eos=True)

    def seconds() -> float:
        for number in range(n_answers):
            engine.submit(Request(str(number), tuple(ids[number]), greedy))
        if n_beams:
            search = BeamSearch(n_beams=n_beams, max_tokens=most)
            engine.submit(Request("search", tuple(ids[-1]), greedy, search=search))
        while engine.scheduler.prefilling or engine.scheduler.waiting:
            engine.step()
        for _ in range(4):
            engine.step()
        began = clock(threads)
        for _ in range(STEPS):
            engine.step()
        taken = (clock(threads) - began) / STEPS
        assert not n_beams or engine.searches.running is not None
        assert len(engine.scheduler.decoding) == n_answers
        for name in (*map(str, range(n_answers)), "search"):
            engine.cancel(name)
        while engine.has_work:
            engine.step()
        return taken

    seconds()
    yield 0.0
    while True:
        yield seconds()


def main() -> None:
    figures = compare(__file__, list(PEERS), 1, ROUNDS)
    keep(
        "beams",
        {"unit": "seconds of CPU time a step of four answers, one thread", "results": summary(figures, "alone")},
    )


if __name__ == "__main__":
    if "--peer" in sys.argv:
        words = sys.argv
        peer = words[words.index("--peer") + 1]
        peer_process({peer: functools.partial(measured, peer)}, peer, int(words[words.index("--threads") + 1]))
    else:
        main()
