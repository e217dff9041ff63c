"""Which task head an adapter's folder tells of: by `head.json`, or, where PEFT wrote the folder, by its config and the
head's shape.

PEFT keeps no labels and leaves the head's class to whoever loads the base; `head.json` has both, so that a folder is
enough to answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fledge.config import read_json
from fledge.errors import CheckpointError, ConfigError
from fledge.model.config import PROBLEMS
from fledge.model.families import family
from fledge.model.folder import write_json
from fledge.model.retask import prefixed, retask, shared_weights, task_config
from fledge.model.safetensors_file import SafetensorsFile
from fledge.model.transformer import Transformer
from fledge.nn.config import MAX_WIDTH
from fledge.tune.base import HEAD, WEIGHTS
from fledge.tune.heads import PREFIX, PREFIX_OF_VIRTUAL, TASKS, head_rows
from fledge.tune.peft_config import VIRTUAL, read_peft_config

MAX_BYTES = 16 << 20
PEFT_TASKS = {"SEQ_CLS": "sequence", "TOKEN_CLS": "token", "QUESTION_ANS": "span"}
CLASSES = {
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "token",
    "ForQuestionAnswering": "span",
    "ForMultipleChoice": "choice",
}


def write_head(model: Transformer, folder: Path) -> None:
    """Tell the head in the adapter's folder: task, labels, problem."""
    head = next(one for one in model.config.heads if one.name in TASKS)
    facts = {"task": head.name, "labels": list(head.label_names) or head.labels, "problem": head.problem}
    write_json(folder / HEAD, facts)


def with_head_of(model: Transformer, folder: Path) -> Transformer:
    """The base with the head that an adapter's folder tells of, without its values; the base where it tells of none.
    Raises ConfigError and CheckpointError for a head that is none, or that is not all there."""
    if (folder / HEAD).is_file():
        raw = read_json(folder / HEAD, MAX_BYTES, unique=True)
        return retask(model, *checked(raw if isinstance(raw, dict) else {}))
    by_peft = peft_head(model, folder)
    return model if by_peft is None else retask(model, *by_peft)


def peft_head(model: Transformer, folder: Path) -> tuple[str, int] | None:
    """Task and number of labels of a head that PEFT saved beside an adapter and the base lacks; None if it saved none.

    The task is `task_type`, or else that of the class that PEFT wrapped; the head's shape has the number of labels.
    Raises CheckpointError for a head of which neither folder has all.
    """
    raw = read_peft_config(folder)
    mapping = raw.get("auto_mapping")
    wrapped = str(mapping.get("base_model_class")) if isinstance(mapping, dict) else ""
    by_class = next((task for end, task in CLASSES.items() if wrapped.endswith(end)), None)
    task = PEFT_TASKS.get(str(raw.get("task_type")), by_class)
    if task is None or not (folder / WEIGHTS).is_file():
        return None
    prefix = PREFIX_OF_VIRTUAL if raw["peft_type"] in VIRTUAL else PREFIX
    rows = head_rows(task_config(model.config, task))
    with SafetensorsFile(folder / WEIGHTS) as file:
        shapes = {name: file.entries[prefix + name].shape for name in rows if prefix + name in file.entries}
    out = next((name for name, row in rows.items() if f"heads.{task}.out.weight" in row.ours), "")
    labels = shapes[out][0] if shapes.get(out) else 0
    of_base = next((head.labels for head in model.config.heads if head.name == task), None)
    if not shapes or of_base is not None and (of_base == labels or out not in shapes):
        return None  # the base's own head, with what was saved of it
    own = family(model.config.family)
    has = shared_weights(model, own).keys()
    missing = sorted(name for name in rows.keys() - shapes.keys() if prefixed(own, name) not in has)
    if missing:
        raise CheckpointError(
            f"{folder / WEIGHTS}: expected the whole task head, got none of {', '.join(missing)[:80]}, which the base "
            "lacks too: without them its answers are random; save it with these modules in modules_to_save"
        )
    if task not in ("sequence", "token"):
        return task, 2
    if not 0 < labels <= MAX_WIDTH:
        raise CheckpointError(f"{folder / WEIGHTS}: {out}: expected 1 to {MAX_WIDTH} labels, got {labels}")
    return task, labels


def checked(raw: dict[str, Any]) -> tuple[str, int | tuple[str, ...], str]:
    """Task, labels and problem of a file. Raises ConfigError."""
    task, labels, problem = raw.get("task"), raw.get("labels"), raw.get("problem", "")
    named = isinstance(labels, list) and 0 < len(labels) <= MAX_WIDTH and all(isinstance(one, str) for one in labels)
    counted = type(labels) is int and 0 < labels <= MAX_WIDTH
    if task not in TASKS or problem not in PROBLEMS or not (named or counted):
        raise ConfigError(
            f"{HEAD}: expected a task ({', '.join(TASKS)}) with labels and problem, got {str(raw)[:60]}; save it again"
        )
    return task, tuple(labels) if isinstance(labels, list) else labels, problem  # type: ignore[return-value]
