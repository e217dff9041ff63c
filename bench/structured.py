"""What a constraint costs: microseconds of CPU a token over a vocabulary, and milliseconds to compile.

Random logits over a published vocabulary (LLaMA 2's 32,000 pieces, LLaMA 3's 128,000 tokens) are sampled under a
schema, any JSON object, a regex and a list of texts. `mask` is reading the mask again; `sampling` the whole choice of
a token and the automaton's step, `plain` the same without a constraint. `compile` is what a constraint costs that was
not seen before, its trial in a process of its own included; `table` what the first constraint of a model costs. The
vocabularies are read from FLEDGE_DATA.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import numpy as np
from harness import keep

from fledge.engine.constrain import Automaton, Constrainer
from fledge.engine.constraint import Constraint
from fledge.engine.request import Sampling
from fledge.engine.sampling import Sampler
from fledge.text.tokenizer import Tokenizer

DATA = Path(os.environ.get("FLEDGE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
VOCABULARIES = {"llama2": "conf_tokenizers/llama2/tokenizer.model", "llama3": "conf_tokenizers/llama3/tokenizer.model"}
SCHEMA = """{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0},
"tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}}}, "required": ["name", "age", "tags"],
"additionalProperties": false}"""
CONSTRAINTS = {
    "schema": Constraint("json_schema", SCHEMA),
    "object": Constraint("json_object"),
    "regex": Constraint("regex", r"[A-Z][a-z]+( [a-z]+){3,40}\."),
    "choice": Constraint("choice", tuple(f"option number {i}" for i in range(1000))),
}
N_TOKENS = 300


def microseconds(began: float, n: int = 1) -> float:
    return (time.process_time() - began) / n * 1e6


def walk(constrainer: Constrainer, constraint: Constraint, rows: np.ndarray) -> tuple[list[float], list[float]]:
    """(automaton, sampling): microseconds of each token of answers one after another."""
    automaton_us, sampling_us = [], []
    seed = 0
    while len(sampling_us) < N_TOKENS:
        seed += 1
        automaton = constrainer.automaton(constraint)
        sampler = Sampler(Sampling(seed=seed), 0, [1], [0], constrainer.vocab_size, automaton)
        while not automaton.ended and len(sampling_us) < N_TOKENS and sampler.n_accepted < 60:
            began = time.process_time()
            token = sampler.choose(rows[len(sampling_us) % len(rows)], sampler.n_accepted)
            if token == 0:
                break
            sampler.accept(token)
            sampling_us.append(microseconds(began))
            automaton_us.append(repeated(automaton))
    return automaton_us, sampling_us


def repeated(automaton: Automaton) -> float:
    """Microseconds of reading the mask where it stands."""
    began = time.process_time()
    automaton.read()
    return microseconds(began)


def measured(path: Path) -> dict[str, object]:
    tokenizer = Tokenizer.load(path)
    constrainer = Constrainer(tokenizer, tokenizer.vocab_size)
    rows = np.random.default_rng(0).standard_normal((8, tokenizer.vocab_size)).astype(np.float32) * 4
    began = time.process_time()
    _ = constrainer.table
    result: dict[str, object] = {"vocabulary": tokenizer.vocab_size, "table_ms": microseconds(began) / 1e3}
    plain = Sampler(Sampling(), 0, [1], [0], tokenizer.vocab_size)
    began = time.process_time()
    for number in range(100):
        plain.choose(rows[number % len(rows)], number)
    result["plain_us"] = microseconds(began, 100)
    for name, constraint in CONSTRAINTS.items():
        began, wall = time.process_time(), time.perf_counter()
        constrainer.automaton(constraint)
        compile_ms, wall_ms = microseconds(began) / 1e3, (time.perf_counter() - wall) * 1e3
        automaton_us, sampling_us = walk(constrainer, constraint, rows)
        result[name] = {
            "compile_ms": compile_ms,
            "compile_wall_ms": wall_ms,
            "mask_us": statistics.median(automaton_us),
            "mask_us_highest": max(automaton_us),
            "sampling_us": statistics.median(sampling_us),
            "sampling_us_highest": max(sampling_us),
        }
    return result


if __name__ == "__main__":
    keep(
        "structured",
        {"clock": "CPU time, one thread", "results": {n: measured(DATA / p) for n, p in VOCABULARIES.items()}},
    )
