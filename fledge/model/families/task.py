"""Tasks: what each class of transformers puts on a family's body, by its name in config.json. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import PROBLEMS, HeadConfig, ModelConfig, Take
from fledge.nn.config import MAX_WIDTH, Activation

POOLER = "pooler"  # the head that a file may lack
OLD_CLASSES = {"t5withlmheadmodel": "t5forconditionalgeneration"}  # names that transformers gave up
DEFAULT_LABELS = 2  # transformers' number for a config.json without labels


@dataclass(frozen=True)
class Head:
    """A task head of a family: what it computes, and their modules that hold its weights.

    `dense` comes first where it is named, then `norm`, then `out`. `labels` None: config.json says how many; 0: nothing
    follows `dense` (a pooler). `global_first`: see HeadConfig.
    """

    name: str
    take: Take
    labels: int | None = None
    out: str = ""
    dense: str = ""
    norm: str = ""
    activation: Activation = "tanh"
    bias: bool = True
    dense_bias: bool = True
    global_first: bool = False

    def config(self, labels: int, names: tuple[str, ...], problem: str) -> HeadConfig:
        own = self.labels is None
        return HeadConfig(
            self.name, self.take, labels if self.labels is None else self.labels, bool(self.dense), self.activation,
            self.bias, self.dense_bias, bool(self.norm), self.global_first, names if own else (),
            problem if own else "",
        )  # fmt: skip

    def modules(self) -> dict[str, str]:
        """Our module of the head -> theirs."""
        return {part: name for part in ("dense", "norm", "out") if (name := getattr(self, part))}


@dataclass(frozen=True)
class Task:
    """One class of transformers: its name, whether it has the output product, its heads.

    `base`: the bare model, whose files leave the family's prefix out. Any file may lack its pooler. `prefix`: what
    stands in its files instead of the family's prefix. `encoder_only`: an encoder–decoder family's class without the
    decoder. `name` is the word in `model.task=…`.
    """

    name: str
    architecture: str
    lm: bool = False
    heads: tuple[Head, ...] = ()
    base: bool = False
    prefix: str = ""
    encoder_only: bool = False

    def fits(self, config: ModelConfig, heads: set[str]) -> bool:
        """Whether a config has this class's stacks and output, and heads of these names."""
        stacks = not self.encoder_only or config.decoder is None
        return stacks and self.lm == config.lm and heads == {head.name for head in self.heads}


AdjustHead = Callable[[HeadConfig, ModelConfig, dict[str, Any]], HeadConfig]


def decoder_tasks(
    architecture: str,
    heads: tuple[str, ...] = ("sequence", "token", "span"),
    token: str = "score",
    span_prefix: str = "",
    stem: str = "",
) -> tuple[Task, ...]:
    """The tasks of a decoder: next token, the bare model, and `heads` on the last token, each token and a span.

    `token`: what transformers calls the head on each token; `span_prefix`: what stands before the body's names in a
    span model's files; `stem`: how the class names begin, by default as `architecture` does.
    """
    stem = stem or architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    sequence = Head("sequence", "last", out="score", bias=False)
    with_heads = (
        Task("sequence", f"{stem}ForSequenceClassification", heads=(sequence,)),
        Task("token", f"{stem}ForTokenClassification", heads=(Head("token", "each", out=token),)),
        Task("span", f"{stem}ForQuestionAnswering", heads=(Head("span", "each", 2, "qa_outputs"),), prefix=span_prefix),
    )
    bare = (Task("lm", architecture, lm=True), Task("base", f"{stem}Model", base=True))
    return (*bare, *(task for task in with_heads if task.name in heads))


def own_tasks(architecture: str, declared: tuple[Task, ...]) -> tuple[Task, ...]:
    """A family's tasks: those it declares, or those of a decoder; none for another kind that declares none."""
    if declared or not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return declared
    return decoder_tasks(architecture)


def task_of(tasks: tuple[Task, ...], raw: dict[str, Any]) -> Task:
    """The task that config.json's `architectures` names; the first without one. Raises ConfigError for a stranger."""
    given = raw.get("architectures")
    if given is None or given == []:
        return tasks[0]
    name = given[0] if isinstance(given, list) else given
    wanted = OLD_CLASSES.get(name.lower(), name.lower()) if isinstance(name, str) else None
    for task in tasks:
        if task.architecture.lower() == wanted:
            return task
    known = ", ".join(task.architecture for task in tasks)
    raise ConfigError(f"config.json: architectures: expected one of {known}, got {str(name)[:60]!r}")


def task_named(tasks: tuple[Task, ...], name: str) -> Task:
    """The task called `name`; the first for an empty one. Raises ConfigError listing the known ones."""
    for task in tasks:
        if name in ("", task.name):
            return task
    raise ConfigError(f"model.task: expected one of {', '.join(t.name for t in tasks)}, got {name!r:.60}")


def task_of_config(tasks: tuple[Task, ...], config: ModelConfig) -> Task:
    """The task whose head names and output a config has, its pooler aside. Raises ConfigError."""
    names = {head.name for head in config.heads}
    for wanted in (names, names | {POOLER}):
        # a class of the encoder alone comes first: another one's heads may have the same names
        for task in sorted(tasks, key=lambda task: not task.encoder_only):
            if task.fits(config, wanted):
                return task
    raise ConfigError(
        f"model: {config.family} has no class with {'an output and ' if config.lm else ''}heads "
        f"{', '.join(sorted(names)) or 'none'}; expected one of {', '.join(t.architecture for t in tasks)}"
    )


def posed(config: ModelConfig, task: Task, raw: dict[str, Any], adjust: AdjustHead | None = None) -> ModelConfig:
    """The body `config` with the heads of `task`, their labels from config.json. Raises ConfigError."""
    names = label_names(raw) if any(head.labels is None for head in task.heads) else ()
    problem = raw.get("problem_type") or ""
    if problem not in PROBLEMS:
        raise ConfigError(f"config.json: problem_type: expected one of {', '.join(PROBLEMS[1:])}, got {problem!r:.60}")
    labels = len(names) or number_of_labels(raw)
    heads = tuple(head.config(labels, names, problem) for head in task.heads)
    if adjust is not None:
        heads = tuple(adjust(head, config, raw) for head in heads)
    config = replace(config, lm=task.lm, heads=heads, decoder=None if task.encoder_only else config.decoder)
    return config if task.lm else replace(config, transform=None, output_bias=False)


def number_of_labels(raw: dict[str, Any]) -> int:
    value = raw.get("num_labels")
    value = DEFAULT_LABELS if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_WIDTH:
        raise ConfigError(f"config.json: num_labels: expected an integer in 1..{MAX_WIDTH}, got {str(value)[:40]!r}")
    return value


def label_names(raw: dict[str, Any]) -> tuple[str, ...]:
    """The names in id2label, in order; empty without any. Raises ConfigError unless its keys are 0, 1, 2…"""
    table = raw.get("id2label")
    if table is None or table == {}:
        return ()
    if not isinstance(table, dict) or len(table) > MAX_WIDTH:
        raise ConfigError(f"config.json: id2label: expected a mapping of numbers to names, got {str(table)[:40]!r}")
    if {str(key) for key in table} != {str(i) for i in range(len(table))}:
        raise ConfigError(f"config.json: id2label: expected the keys 0..{len(table) - 1}, got {str(list(table))[:60]}")
    by_number = {str(key): value for key, value in table.items()}
    if not all(isinstance(value, str) for value in by_number.values()):
        raise ConfigError("config.json: id2label: expected a name for each label, got something else")
    return tuple(by_number[str(i)] for i in range(len(table)))


def label_keys(config: ModelConfig) -> dict[str, Any]:
    """What config.json says of labels: id2label, label2id and problem_type of the head that has labels of its own."""
    for head in config.heads:
        if head.label_names or head.name in ("sequence", "token"):
            names = head.label_names or tuple(f"LABEL_{i}" for i in range(head.labels))
            keys: dict[str, Any] = {
                "id2label": {str(i): name for i, name in enumerate(names)},
                "label2id": {name: i for i, name in enumerate(names)},
            }
            return {**keys, "problem_type": head.problem} if head.problem else keys
    return {}
