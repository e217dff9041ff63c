"""`fledge config schema VERB`: the JSON schema of a verb's config, for editors and for checking YAML files."""

from __future__ import annotations

import importlib
import json as json_text
from dataclasses import dataclass
from typing import Any

from fledge import config as config_module
from fledge.cli.parse import find_verb
from fledge.errors import ConfigError


@dataclass(frozen=True)
class SchemaConfig:
    """Which verb's config to describe."""

    verb: tuple[str, ...]
    """The verb, in one word or two (pretrain, data build)."""


def print_schema(config: SchemaConfig, json: bool = False) -> dict[str, Any]:
    """The JSON schema (2020-12) of the verb's config; printed indented unless the caller prints it as one line."""
    if not config.verb:
        raise ConfigError("config schema: expected a verb, got none; see fledge --help")
    verb, rest = find_verb([word for text in config.verb for word in text.split()])
    if rest:
        raise ConfigError(f"config schema: expected one verb, got {verb.name!r} and then {rest[0]!r}")
    module, _, name = verb.config.partition(":")
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"fledge {verb.name}",
        **config_module.schema(getattr(importlib.import_module(module), name)),
    }
    if not json:
        print(json_text.dumps(schema, indent=1, ensure_ascii=False))
    return schema
