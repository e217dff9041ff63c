"""A rollout on disk: answers with their log-probabilities and rewards, and of which weights they are.

`rollouts/00000012.jsonl`: a header, then an answer a line. JSON keeps every float64 to the bit. The file is written
beside, fsynced and renamed before the first update that learns from it, so a run that was killed inside a rollout goes
on with the very answers it had.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fledge.errors import CheckpointError
from fledge.lineage import write_text_durably

FORMAT = 1


@dataclass(frozen=True)
class Answer:
    """One sampled answer. Lists have an entry for each of `token_ids`, stop token included; natural logarithms."""

    prompt: str
    """Where the prompt stands."""
    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    finish: str
    """stop, or length: max_tokens cut it."""
    engine: list[float]
    """The engine's log-probabilities, of the distribution before temperature."""
    trainer: list[float]
    """Training's own, of the same distribution under the same weights."""
    old: list[float]
    """Training's own at the sampling's temperature: what ratios are formed with."""
    reference: list[float]
    """The reference model's, at that temperature."""
    entropy: list[float]
    """Of the policy at that temperature, nats."""
    values: list[float]
    """What the value head expects; empty without one."""
    parts: dict[str, float]
    """The rewards by name."""
    reward: float
    judge: float | None = None


@dataclass(frozen=True)
class Rollout:
    """The answers of rollout `number`, those to one prompt side by side, under weights of digest `weights`.

    `key`: digest of the settings and data that it depends on. `kl`: the weight of the distance in its rewards.
    `figures`: what is logged of it."""

    number: int
    key: str
    weights: str
    kl: float
    answers: Sequence[Answer]
    figures: dict[str, float] = field(default_factory=dict)


def path_of(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.jsonl"


def write_rollout(folder: Path, rollout: Rollout) -> None:
    """Raises CheckpointError where it can't be written."""
    lines = "".join(json.dumps(asdict(answer), allow_nan=False) + "\n" for answer in rollout.answers)
    header = {
        "format": FORMAT, "rollout": rollout.number, "key": rollout.key, "weights": rollout.weights, "kl": rollout.kl,
        "figures": rollout.figures, "answers": len(rollout.answers),
    }  # fmt: skip
    header["sha256"] = digest_of(header, lines)
    path = path_of(folder, rollout.number)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text_durably(path, json.dumps(header, allow_nan=False) + "\n" + lines)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be written ({error.strerror}); no update was made of it") from None


def read_rollout(folder: Path, number: int) -> Rollout | None:
    """Rollout `number`, or None if there is none that is whole and of this format."""
    try:
        text = path_of(folder, number).read_text(encoding="utf-8")
        first, _, rest = text.partition("\n")
        header: dict[str, Any] = json.loads(first)
        if header["format"] != FORMAT or header.pop("sha256") != digest_of(header, rest):
            return None
        answers = [Answer(**json.loads(line)) for line in rest.splitlines()]
        return Rollout(number, header["key"], header["weights"], header["kl"], answers, header["figures"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def begun(folder: Path, number: int, key: str, weights: str, make: Callable[[], Rollout]) -> Rollout:
    """Rollout `number` of weights of the digest `weights`: the one on the disk if it is theirs, else a new one, which
    is there before anybody learns of it."""
    known = known_of(folder, number, key, weights)
    if known is not None:
        return known
    rollout = make()
    write_rollout(folder, rollout)
    return rollout


def known_of(folder: Path, number: int, key: str, weights: str) -> Rollout | None:
    """Rollout `number` on the disk, if it is of these settings and weights."""
    known = read_rollout(folder, number)
    return known if known is not None and (known.key, known.weights) == (key, weights) else None


def gone_on_with(folder: Path, number: int, key: str) -> Rollout:
    """The rollout inside which a run was stopped, or by whose distance the next one weighs its own. Raises
    CheckpointError if it is gone."""
    known = read_rollout(folder, number)
    if known is None or known.key != key:
        what = "none that is whole" if known is None else "one of other settings or data"
        raise CheckpointError(
            f"{path_of(folder, number)}: expected the rollout that this checkpoint goes on from, found "
            f"{what}; bring it back, or go on from an earlier checkpoint"
        )
    return known


def digest_of(header: dict[str, Any], lines: str) -> str:
    """SHA-256 of a file but for its own digest."""
    return hashlib.sha256((json.dumps(header, sort_keys=True) + lines).encode()).hexdigest()


def read_figures(folder: Path, number: int) -> dict[str, float] | None:
    """The figures of a rollout's header alone."""
    try:
        with open(path_of(folder, number), encoding="utf-8") as file:
            figures: dict[str, float] = json.loads(file.readline())["figures"]
            return figures
    except (OSError, ValueError, KeyError, TypeError):
        return None
