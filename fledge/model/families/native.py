"""fledge's own folder format: for models that no published format can express, such as LLaMA with ALiBi.

config.json's model_type is "fledge", so transformers refuses such a folder by name instead of computing something else;
`model` in it is the whole config, and weights stand under our own names.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from fledge.config import convert, suggest
from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.family import Family, refuse
from fledge.model.variants import OWN_FORMAT
from fledge.nn.config import MAX_LAYERS

KIND, TIMES = "is", "times"


def plain(value: Any) -> Any:
    """A config as JSON: each group names its class; equal layers in a row are one entry with `times`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {KIND: type(value).__name__} | {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if not isinstance(value, tuple):
        return value
    runs: list[Any] = []
    for item in map(plain, value):
        if isinstance(item, dict) and runs and {k: v for k, v in runs[-1].items() if k != TIMES} == item:
            runs[-1][TIMES] += 1
        else:
            runs.append(item | {TIMES: 1} if isinstance(item, dict) else item)
    return runs


def value_of(hint: Any, raw: Any, at: str) -> Any:
    """What `plain` wrote, as `hint`. Raises ConfigError naming the place."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    union = origin in (typing.Union, types.UnionType)
    classes = [c for c in (arguments if union else (hint,)) if dataclasses.is_dataclass(c)]
    if classes and not (raw is None and union and type(None) in arguments):
        return instance(classes, raw, at)
    if origin is tuple and dataclasses.is_dataclass(arguments[0]):
        return unrolled(arguments[0], raw, at)
    return convert(hint, raw, at)


def instance(classes: list[Any], raw: Any, at: str) -> Any:
    """One of `classes`, by the name that `raw` gives."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{at}: expected a mapping, got {type(raw).__name__}")
    names = {cls.__name__: cls for cls in classes}
    cls = names.get(raw.get(KIND) if isinstance(raw.get(KIND), str) else "")
    if cls is None:
        raise ConfigError(f"{at}.{KIND}: expected one of {', '.join(names)}, got {str(raw.get(KIND))[:40]!r}")
    hints, fields = typing.get_type_hints(cls), {field.name: field for field in dataclasses.fields(cls)}
    values = {}
    for key, value in raw.items():
        if key == KIND:
            continue
        if key not in fields:
            raise ConfigError(f"{at}.{str(key)[:40]}: unknown key{suggest(str(key)[:40], fields)}")
        values[key] = value_of(hints[key], value, f"{at}.{key}")
    for name, field in fields.items():
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if missing and name not in values:
            raise ConfigError(f"{at}.{name}: expected a value, found none")
    return cls(**values)


def unrolled(cls: Any, raw: Any, at: str) -> tuple[Any, ...]:
    """A list of groups, each as often as its `times` says."""
    if not isinstance(raw, list):
        raise ConfigError(f"{at}: expected a list, got {type(raw).__name__}")
    items: list[Any] = []
    for number, entry in enumerate(raw):
        times = entry.get(TIMES, 1) if isinstance(entry, dict) else 1
        if isinstance(times, bool) or not isinstance(times, int) or not 1 <= times <= MAX_LAYERS - len(items):
            raise ConfigError(f"{at}[{number}].{TIMES}: expected 1..{MAX_LAYERS} in all, got {str(times)[:40]}")
        group = {k: v for k, v in entry.items() if k != TIMES} if isinstance(entry, dict) else entry
        items += [instance([cls], group, f"{at}[{number}]")] * times
    return tuple(items)


def read(raw: dict[str, Any]) -> ModelConfig:
    config = value_of(ModelConfig, raw.get("model"), "config.json: model")
    assert isinstance(config, ModelConfig)
    if config.family != OWN_FORMAT:
        raise ConfigError(f"config.json: model.family: expected {OWN_FORMAT}, got {config.family[:40]!r}")
    for key, value in (("vocab_size", config.vocab_size), ("tie_word_embeddings", config.tie)):
        refuse(raw, key, (value,), f"model has {value}")
    return config


def write(config: ModelConfig) -> dict[str, Any]:
    return {"model": plain(config)}


def build(shape: ShapeConfig) -> ModelConfig:
    raise ConfigError(
        "model.family: a new model begins as a published family; set model.family=llama (or another) and what differs, "
        "such as model.position=alibi"
    )


FAMILY = Family(
    name=OWN_FORMAT,
    model_type=OWN_FORMAT,
    architecture="FledgeModel",
    build=build,
    read=read,
    write=write,
    weights=lambda config: [],
    own_names=True,
)
