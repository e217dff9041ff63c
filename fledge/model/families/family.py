"""What a family file fills in. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.task import AdjustHead, Task, own_tasks, posed, task_named, task_of
from fledge.model.variants import OWN_FORMAT, base_shape, expressible, varied
from fledge.nn.config import Activation

How = Literal["same", "transposed", "fused_transposed", "fused", "zeros", "interleaved", "pairs", "stacked"]

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "gelu_fast": "gelu_tanh",
    "swish": "silu",
}
"""transformers' names of the activations; of two names for one, the first is written unless a family prefers."""

MAY_BE_NULL = frozenset({
    "head_dim", "max_position_embeddings", "n_inner", "num_decoder_layers", "num_key_value_heads",
    "original_max_position_embeddings", "partial_rotary_factor", "rope_theta",
})  # fmt: skip
"""Numbers that transformers works out from others where config.json says null."""

MAX_IDS = 1024


@dataclass(frozen=True)
class Weight:
    """One row of the name table. `theirs` is the Hugging Face name, `ours` one or more parameters; `{i}` is a block
    of `stack` (empty: the one that heads read; `blocks`: which of them, None for all), `{e}` one of `experts`.

    "same": equal tensors. "transposed": theirs is [in, out]. "fused": theirs is ours stacked along the output;
    "fused_transposed": the same for [in, out] (vectors are stacked as they are). "interleaved": theirs is ours stacked
    group by group (`heads` of them: a key/value head and its queries). "pairs": each of theirs' `heads` turns channel
    pairs (c, c + 1) of its first `channels`, ours (c, c + channels / 2). "zeros": we have no such parameter; `size`
    zeros are written and expected, in one row of a matrix where `row` says so. "stacked": theirs is [size, rows, in],
    ours in `size` equal groups, their rows in pairs as above where there are `channels`.
    `optional`: a file may leave it out.
    """

    theirs: str
    ours: tuple[str, ...]
    how: How = "same"
    size: int = 0
    stack: Literal["", "encoder", "decoder"] = ""
    blocks: tuple[int, ...] | None = None
    experts: int = 0
    heads: int = 0
    channels: int = 0
    row: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Inside:
    """A published model of images and text that holds a family's: its config stands under `text_config`, its tensors
    begin with a key of `prefixes` instead of that key's value, and those that begin with `others` are not read.
    `class_` is its class in transformers: of another one, with a head of its own, the text model is not all."""

    model_type: str
    class_: str
    prefixes: dict[str, str]
    others: tuple[str, ...]

    def text_config(self, raw: dict[str, Any]) -> dict[str, Any]:
        """The text model's config.json; ids of tokens may stand outside. Raises ConfigError."""
        own = raw.get("text_config")
        if not isinstance(own, dict):
            raise ConfigError(f"config.json: text_config: expected a mapping in a {self.model_type}, got {own!r:.40}")
        names = raw.get("architectures")
        name = names[0] if isinstance(names, list) and names else names
        if name is not None and name != self.class_ and (not isinstance(name, str) or "For" in name):
            raise ConfigError(f"config.json: architectures: expected {self.class_}, got {name!r:.60}")
        outside = {key: raw[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in raw}
        return {**outside, **own}

    def name_of_text(self, name: str) -> str:
        for theirs, ours in self.prefixes.items():
            if name.startswith(theirs):
                return ours + name.removeprefix(theirs)
        return name


@dataclass(frozen=True)
class Family:
    """A family: `build` makes a ModelConfig from a ShapeConfig, `read`/`write` translate config.json,
    `weights(config)` is the name table; `prefix` may be missing in a file; `ignored` name endings hold no weights;
    `copies`: other names under which a file may hold a tensor once more, or instead. `tasks`: its classes in
    transformers, the first of a config without one (empty: those of every decoder); `adjust_head` changes a head by
    config.json. `spellings`: other name tables that files may follow; `weights` is the one that is written.
    `aliases`: keys of config.json -> other names that transformers takes for them. `inside`: a larger model whose text
    model is of this family. `own_names`: weights stand under our names, and the table is empty. `modules`: modules by
    their names in files -> those in transformers, where they are others."""

    name: str
    model_type: str
    architecture: str
    build: Callable[[ShapeConfig], ModelConfig]
    read: Callable[[dict[str, Any]], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    weights: Callable[[ModelConfig], list[Weight]]
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    copies: dict[str, str] = field(default_factory=dict)
    presets: dict[str, ShapeConfig] = field(default_factory=dict)
    tasks: tuple[Task, ...] = ()
    adjust_head: AdjustHead | None = None
    spellings: tuple[Callable[[ModelConfig], list[Weight]], ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    inside: Inside | None = None
    own_names: bool = False
    modules: dict[str, str] = field(default_factory=dict)

    @property
    def all_tasks(self) -> tuple[Task, ...]:
        return own_tasks(self.architecture, self.tasks)

    def config_of(self, raw: dict[str, Any]) -> ModelConfig:
        """The model that config.json describes, with the heads of the class it names. Raises ConfigError."""
        raw = aliased(raw, self.aliases)
        if not self.all_tasks:
            return self.read(raw)
        task = task_of(self.all_tasks, raw)
        return posed(self.read(raw), task, raw, self.adjust_head)

    def new_config(self, shape: ShapeConfig) -> ModelConfig:
        """A new model of `shape`, varied as it says, with the heads of its task. Raises ConfigError."""
        config = self.build(base_shape(shape))
        if self.all_tasks or shape.task:
            raw = {"num_labels": shape.labels} if shape.labels else {}
            config = posed(config, task_named(self.all_tasks, shape.task), raw, self.adjust_head)
        changed = varied(config, shape)
        if changed == config or expressible(changed, self.read, self.write):
            return changed
        return replace(changed, family=OWN_FORMAT)


def aliased(raw: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """`raw` with each key of `names` filled in from its other name. Raises ConfigError if the two contradict."""
    filled = dict(raw)
    for name, other in names.items():
        if raw.get(other) is None:
            if other in raw and raw.get(name) is None:
                filled[name] = None
            continue
        if raw.get(name) is not None and raw[name] != raw[other]:
            raise ConfigError(f"config.json: {name} and {other}: expected one value, got two; remove one")
        filled[name] = raw[other]
    return filled


def given(raw: dict[str, Any], key: str, default: Any) -> Any:
    """What config.json says of `key`; the default where it is silent, or says null of one of MAY_BE_NULL."""
    value = raw.get(key, default)
    if value is None and key in raw and key not in MAY_BE_NULL:
        raise ConfigError(f"config.json: {key}: expected a number, got null; state it, or leave the key out")
    return default if value is None else value


def integer(raw: dict[str, Any], key: str, default: int | None = None) -> int:
    """A whole number of config.json, from 0. Raises ConfigError naming the key."""
    value = given(raw, key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0 or value >= 2**40:
        raise ConfigError(f"config.json: {key}: expected a whole number, got {str(value)[:40]!r}")
    return value


def number(raw: dict[str, Any], key: str, default: float) -> float:
    value = given(raw, key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e30:
        raise ConfigError(f"config.json: {key}: expected a finite number of at least 0, got {str(value)[:40]!r}")
    return float(value)


def flag(raw: dict[str, Any], key: str, default: bool) -> bool:
    value = raw.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"config.json: {key}: expected true or false, got {str(value)[:40]!r}")
    return value


def switched_on(raw: dict[str, Any], key: str) -> bool:
    """A flag that is off where config.json is silent or says null."""
    return raw.get(key) is not None and flag(raw, key, False)


def choice(raw: dict[str, Any], key: str, table: dict[str, Any], default: str) -> Any:
    value = raw.get(key, default)
    if value not in table if isinstance(value, str) else True:
        raise ConfigError(f"config.json: {key}: expected one of {', '.join(table)}, got {str(value)[:40]!r}")
    return table[value]


def activation_name(activation: Activation, preferred: tuple[str, ...] = ()) -> str:
    """transformers' name of an activation. Raises ConfigError for one it can't be told of."""
    for name in (*preferred, *ACTIVATIONS):
        if ACTIVATIONS[name] == activation:
            return name
    known = ", ".join(sorted(set(ACTIVATIONS.values())))
    raise ConfigError(f"model.activation: expected one of {known}, got {activation!r}; set model.activation=…")


def special_ids(raw: dict[str, Any], vocab_size: int, roles: tuple[str, ...] = ("bos", "eos", "pad")) -> dict[str, int]:
    """The ids of `roles` in config.json; a list of eos ids gives the first. Ids outside the vocabulary are left out, as
    published files hold such (-1 for none). Raises ConfigError for what is no token id."""
    ids = {}
    for role in roles:
        found = [i for i in token_ids(raw, f"{role}_token_id")[:1] if 0 <= i < vocab_size]
        if found:
            ids[role] = found[0]
    return ids


def token_ids(raw: dict[str, Any], key: str, at: str = "config.json") -> list[int]:
    """The one or several token ids under `key`; none for null. Raises ConfigError: a list may stand for eos alone."""
    value = raw.get(key)
    ids = value if isinstance(value, list) and key == "eos_token_id" else [] if value is None else [value]
    if len(ids) > MAX_IDS or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        or_list = f" or a list of at most {MAX_IDS}" if key == "eos_token_id" else ""
        raise ConfigError(f"{at}: {key}: expected a token id{or_list}, got {str(value)[:40]!r}")
    return ids


def refuse(raw: dict[str, Any], key: str, allowed: tuple[Any, ...], why: str) -> None:
    """Raise ConfigError if config.json asks for something this family file does not do."""
    if key in raw and not any(
        raw[key] == one and isinstance(raw[key], bool) == isinstance(one, bool) for one in allowed
    ):
        raise ConfigError(f"config.json: {key}: {str(raw[key])[:60]!r} is not supported ({why})")


def rounded_up(value: float, multiple: int) -> int:
    return int(-(-value // multiple) * multiple)


def needed(shape: ShapeConfig, *names: str) -> None:
    """Raise ConfigError for the first field that a new model must state."""
    for name in names:
        if not getattr(shape, name):
            raise ConfigError(
                f"model.{name}: expected a positive number, got {getattr(shape, name)}; set model.{name}=…"
            )


def head_channels(shape: ShapeConfig) -> int:
    """Channels per head. Raises ConfigError with the nearest width that works."""
    if shape.head_channels:
        return shape.head_channels
    if shape.width % shape.heads:
        nearest = max(shape.heads, round(shape.width / shape.heads) * shape.heads)
        raise ConfigError(f"model.width: {shape.width} is not a multiple of heads {shape.heads}; nearest is {nearest}")
    return shape.width // shape.heads
