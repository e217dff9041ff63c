"""Going on with a run: from which checkpoint, and whether today's config and data still train the same model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fledge.config import to_dict, to_yaml
from fledge.errors import CheckpointError
from fledge.lineage import write_text_durably
from fledge.train import checkpointing
from fledge.train.checkpointing import State
from fledge.train.config import FREE_TO_CHANGE, TrainConfig
from fledge.train.ranks import Ranks


def resume_point(
    folder: Path, config: Any, train_config: TrainConfig, data_digest: str, ranks: Ranks
) -> tuple[Path, State] | None:
    """The newest valid checkpoint of a run folder and its state, which all `ranks` verify together, after comparing
    config and data with today's.

    Raises CheckpointError if the config or the data has changed in a way that would train another model.
    """
    found = checkpointing.newest_valid(folder / "checkpoints", ranks)
    if found is None:
        return None
    path, state = found
    if not train_config.allow_changes:
        processes = (int(state.facts.get("world_size", 1)), ranks.size)
        changed = changes(with_defaults(state.config, config), to_dict(config), processes)
        if changed:
            raise CheckpointError(
                f"{folder}: holds a run with another config ({'; '.join(changed[:4])}); use another run.dir, "
                "or train.allow_changes=true to go on all the same"
            )
        if state.data_digest and state.data_digest != data_digest:
            raise CheckpointError(
                f"{folder}: expected data {state.data_digest[:12]}…, got {data_digest[:12]}…: the data has changed; "
                "use another run.dir, or train.allow_changes=true to go on all the same"
            )
    return path, state


def changes(before: dict[str, Any], now: dict[str, Any], processes: tuple[int, int] = (1, 1)) -> list[str]:
    """`key: was X, is Y` for every key whose change would train another model. `processes`: how many trained it."""
    found = changed_keys(before, now)
    old, new = (micro_rows(config, n) for config, n in zip((before, now), processes, strict=True))
    kinds = now.get("train", {}).get("dropout", {})
    if any(now.get(group, {}).get("dropout") for group in ("model", "tune")) or any(kinds.values()):
        if old != new and new != "auto":
            found.append(f"train.micro_rows: was {old}, is {new} (dropout is drawn by micro-batch)")
        was, is_now = (config["train"].get("parallel", {}).get("pipe", 1) for config in (before, now))
        if was != is_now:
            found.append(f"train.parallel.pipe: was {was}, is {is_now} (each stage draws its own dropout)")
    return found


def with_defaults(before: dict[str, Any], config: Any) -> dict[str, Any]:
    """An earlier config of the class of `config`, with the defaults of keys that came later: a key that nobody could
    set yet meant its default."""
    if not isinstance(before, dict):
        return before
    filled = dict(before)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in filled:
            inner = filled[field.name]
            if dataclasses.is_dataclass(value) and isinstance(inner, dict):
                filled[field.name] = with_defaults(inner, value)
        elif field.default is not dataclasses.MISSING:
            filled[field.name] = to_dict(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            filled[field.name] = to_dict(field.default_factory())
    return filled


def micro_rows(config: dict[str, Any], n_processes: int = 1) -> int | str | None:
    """Rows that are computed at once."""
    train = config.get("train", {})
    mesh = train.get("parallel", {})
    readers = n_processes // (mesh.get("tensor", 1) * mesh.get("pipe", 1))
    return train.get("micro_rows") or train.get("rows", 0) // max(1, readers) or None


def rows_begun_with(state: State, dropped: bool) -> int:
    """What train.micro_rows=auto means for a run that goes on; 0 where that is open still: it has not begun, or began
    with all rows and nothing is `dropped`, whose draws would change."""
    begun_with = state.config.get("train", {}).get("micro_rows", 0)
    if dropped and state.config:
        begun_with = micro_rows(state.config, int(state.facts.get("world_size", 1)))
    return int(begun_with)


def changed_keys(before: dict[str, Any], now: dict[str, Any], at: str = "") -> list[str]:
    changed = []
    for key in sorted(set(before) | set(now)):
        place = f"{at}.{key}" if at else key
        old, new = before.get(key), now.get(key)
        if at == "train" and key in FREE_TO_CHANGE:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            changed += changed_keys(old, new, place)
        elif old != new and at != "run" and at != "sample":
            changed.append(f"{place}: was {old!r}, is {new!r}")
    return changed


def write_run_yaml(folder: Path, config: Any, facts: dict[str, Any]) -> None:
    """run.yaml: the resolved config, from which alone the run can be repeated, and what decided its bits."""
    comment = "".join(f"# {key}: {value}\n" for key, value in facts.items())
    write_text_durably(folder / "run.yaml", comment + to_yaml(config))
