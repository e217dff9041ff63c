"""The task of runs/compare: write four letters again. Its best answer to every prompt is known.

A prompt is four of six letters, and an answer is worth the share of its letters that stand where the prompt's
stand; 0 if it has more or fewer than four. The base model learns from answers with many wrong letters and
some of another length, so that it half knows what is wanted.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

LETTERS = "abcdef"
SIZE = 4
WRONG_LETTER, WRONG_SIZE = 0.45, 0.15
N_TUNED, N_PROMPTS, N_HELD_OUT = 700, 400, 100


def write_task(folder: Path) -> None:
    """text.txt and noisy.jsonl, which the base model is made of; prompts.jsonl, to learn from; val.jsonl, held out."""
    words = ["".join(word) for word in itertools.product(LETTERS, repeat=SIZE)]
    draw = random.Random(1)
    draw.shuffle(words)
    tuned, prompts, held_out = words[:N_TUNED], words[N_TUNED:][:N_PROMPTS], words[-N_HELD_OUT:]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text("".join(f"{word}  {word}\n" for word in draw.choices(tuned, k=16 * N_TUNED)))
    write_rows(folder / "noisy.jsonl", ({"messages": [*asked(w), said(noisy(w, draw))]} for w in tuned * 16))
    for name, chosen in (("prompts", prompts), ("val", held_out)):
        write_rows(folder / f"{name}.jsonl", (prompt_row(word) for word in chosen))


def worth(word: str, answer: str) -> float:
    """The true reward of an answer to a prompt; the files say the same to the verbs."""
    return sum(a == b for a, b in zip(word, answer, strict=True)) / SIZE if len(answer) == SIZE else 0.0


def best_expected(rows: Sequence[dict[str, Any]]) -> float:
    """The highest expected reward that any policy can have on these prompts: each one's best over all answers. Longer
    ones are worth 0."""
    every = ["".join(letters) for size in range(SIZE + 1) for letters in itertools.product(LETTERS, repeat=size)]
    return sum(max(worth(row["answer"], answer) for answer in every) for row in rows) / len(rows)


def prompt_row(word: str) -> dict[str, Any]:
    """A prompt with what rewards read of it: each wanted letter by its place, and all of them."""
    return {"messages": asked(word), "answer": word, **{f"letter{i}": c for i, c in enumerate(word, 1)}}


def asked(word: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": word}]


def said(word: str) -> dict[str, str]:
    return {"role": "assistant", "content": word}


def noisy(word: str, draw: random.Random) -> str:
    """An answer as the base model learns it: wrong letters, and now and then one more or less."""
    letters = [draw.choice(LETTERS) if draw.random() < WRONG_LETTER else letter for letter in word]
    if draw.random() < WRONG_SIZE:
        return "".join(letters[:-1]) if draw.random() < 0.3 else "".join(letters) + draw.choice(LETTERS)
    return "".join(letters)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_pairs(answers: Path, pairs: Path, seed: int, rounds: int = 6) -> int:
    """Preference pairs from what `fledge align best-of` wrote of the base model's answers: of two answers to one
    prompt the one of the higher reward is chosen. Each answer is in at most `rounds` of them. Gives their number."""
    draw, found = random.Random(seed), []
    for _, group in itertools.groupby(read_rows(answers), key=lambda row: row["messages"][:-1]):
        of_prompt = list(group)
        for _ in range(rounds):
            draw.shuffle(of_prompt)
            beside = zip(of_prompt[::2], of_prompt[1::2], strict=False)
            found += [pair for pair in beside if pair[0]["reward"] != pair[1]["reward"]]
    draw.shuffle(found)
    write_rows(pairs, (pair_row(*sorted(pair, key=lambda one: -one["reward"])) for pair in found))
    return len(found)


def pair_row(better: dict[str, Any], worse: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt": better["messages"][:-1],
        "chosen": better["messages"][-1:],
        "rejected": worse["messages"][-1:],
    }
