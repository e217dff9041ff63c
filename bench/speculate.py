"""Tokens a second of one stream with and without guesses at next tokens, on a model that was trained and on real text.

`python bench/speculate.py MODEL TEXT [DRAFT …]`: a model folder, a text file that the model has not seen, and what may
guess (default: lookup layers:2). Eight prompts of 64 tokens from the text's eighths, 96 new tokens each, greedy and at
temperature 0.8. Answers must be equal whatever guesses. Accepted: the share of guessed tokens that were kept.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import clock, compare, keep, peer_process, summary

PROMPTS, PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 8, 64, 96, 7
TEMPERATURES = (0.0, 0.8)


def measured(draft: str, temperature: float, threads: int) -> Iterator[float]:
    """Tokens a second; the answers and the counters go into a file that the parent reads."""
    from fledge.engine.config import EngineConfig
    from fledge.engine.load import load_engine
    from fledge.engine.request import Request, Sampling
    from fledge.nn.native import library

    library.build()
    model, text, folder = (os.environ[name] for name in ("BENCH_MODEL", "BENCH_TEXT", "BENCH_FOLDER"))
    config = EngineConfig(n_slots=1, threads=threads, prefix_cache=False, draft="" if draft == "plain" else draft)
    engine = load_engine(model, config)
    read = Path(text).read_text(encoding="utf-8")
    starts = [len(read) * i // PROMPTS for i in range(PROMPTS)]
    prompts = [tuple(engine.tokenizer.encode(read[start : start + 2000])[:PROMPT_TOKENS]) for start in starts]
    sampling = Sampling(max_tokens=NEW_TOKENS, temperature=temperature, seed=1, ignore_eos=True)

    def generate() -> list[tuple[int, ...]]:
        return [engine.complete([Request("one", prompt, sampling)])[0].token_ids for prompt in prompts]

    answers = generate()
    counted = {name: engine.totals[name] for name in ("draft_tokens", "accepted_tokens")}
    Path(folder, name_of(draft, temperature)).write_text(json.dumps({"answers": answers, **counted}))
    yield 0.0
    while True:
        began = clock(threads)
        generate()
        yield PROMPTS * NEW_TOKENS / (clock(threads) - began)


def name_of(draft: str, temperature: float) -> str:
    return f"{draft.replace('/', '_')}@{temperature}"


def main(model: str, text: str, drafts: list[str]) -> None:
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(BENCH_MODEL=model, BENCH_TEXT=text, BENCH_FOLDER=folder)
        for temperature in TEMPERATURES:
            names = [f"{draft}|{temperature}" for draft in ("plain", *drafts)]
            figures = compare(__file__, names, 1, ROUNDS)
            table = summary({name.split("|")[0]: values for name, values in figures.items()}, "plain")
            told = {draft: json.loads(Path(folder, name_of(draft, temperature)).read_text()) for draft in table}
            for draft, found in told.items():
                assert found["answers"] == told["plain"]["answers"], f"{draft} changed an answer"
                table[draft]["accepted"] = found["accepted_tokens"] / max(1, found["draft_tokens"])
            results[f"temperature {temperature}"] = table
    shape = {"prompts": PROMPTS, "prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS, "rounds": ROUNDS}
    keep("speculate", {"unit": "tokens a second of CPU time, one thread", **shape, "results": results})


if __name__ == "__main__":
    if "--peer" in sys.argv:
        words = sys.argv
        name, threads = words[words.index("--peer") + 1], int(words[words.index("--threads") + 1])
        draft, temperature = name.split("|")
        peer_process({name: functools.partial(measured, draft, float(temperature))}, name, threads)
    elif len(sys.argv) < 3:
        raise SystemExit(__doc__)
    else:
        main(sys.argv[1], sys.argv[2], sys.argv[3:] or ["lookup", "layers:2"])
