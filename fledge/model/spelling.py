"""How files spell the names of tensors: with a prefix or without, in old words, for another class of a family."""

from __future__ import annotations

from dataclasses import replace

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig
from fledge.model.families.family import Family
from fledge.model.families.task import POOLER, posed, task_of_config
from fledge.model.names import expanded
from fledge.model.safetensors_file import SafetensorsFile


def canonical_name(own_family: Family, config: ModelConfig, name: str, wanted: set[str]) -> str:
    """A file's name with the family's prefix where it is missing or another's, LayerNorms named as today."""
    name = name_of_today(name)
    if own_family.inside is not None:
        name = own_family.inside.name_of_text(name)
    task = task_of_config(own_family.all_tasks, config) if own_family.all_tasks else None
    if task is not None and task.prefix and name.startswith(task.prefix):
        name = own_family.prefix + name.removeprefix(task.prefix)
    return name if name in wanted else own_family.prefix + name


def name_of_today(name: str) -> str:
    """Old files call the weight and bias of a LayerNorm gamma and beta."""
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def names_of_other_tasks(own_family: Family, config: ModelConfig) -> set[str]:
    """Tensors that a file of this body may hold for another of the family's classes: not read. (Published BERTs hold
    those of pre-training whatever their config.json says.)"""
    names: set[str] = set()
    for task in own_family.all_tasks:
        whole = replace(config, lm=True, heads=()) if task.lm else config
        try:
            names |= {weight.theirs for weight in expanded(own_family, posed(whole, task, {}))}
        except ConfigError:
            continue
    return names


def without_absent_pooler(own_family: Family, config: ModelConfig, where: dict[str, SafetensorsFile]) -> ModelConfig:
    """A file may lack the pooler, as nothing else reads it."""
    if all(head.name != POOLER for head in config.heads):
        return config
    table = expanded(own_family, config)
    names = {weight.theirs for weight in table if any(name.startswith(f"heads.{POOLER}.") for name in weight.ours)}
    if names & {canonical_name(own_family, config, name, names) for name in where}:
        return config
    return replace(config, heads=tuple(head for head in config.heads if head.name != POOLER))


def without_absent_output(own_family: Family, config: ModelConfig, where: dict[str, SafetensorsFile]) -> ModelConfig:
    """For whoever reads states alone: a file may lack all that makes logits of them, whatever class config.json names,
    as published models of sentence vectors do."""
    bare = replace(config, lm=False, transform=None, output_bias=False)
    names = {weight.theirs for weight in expanded(own_family, config)}
    names -= {weight.theirs for weight in expanded(own_family, bare)}
    there = names & {canonical_name(own_family, config, name, names) for name in where}
    return bare if config.lm and names and not there else config


def as_spelled(own_family: Family, config: ModelConfig, names: set[str]) -> Family:
    """The family with the name table that a file's `names` follow, where it has several."""
    usual = {weight.theirs for weight in expanded(own_family, config)} if own_family.spellings else set()
    for other in own_family.spellings:
        variant = replace(own_family, weights=other)
        own = {weight.theirs for weight in expanded(variant, config)} - usual
        if any(name in own or own_family.prefix + name in own for name in names):
            return variant
    return own_family


def prefix_in_files(own_family: Family, config: ModelConfig) -> str:
    """What stands before the body's names in the files of a config's class."""
    if not own_family.all_tasks:
        return own_family.prefix
    task = task_of_config(own_family.all_tasks, config)
    return "" if task.base else task.prefix or own_family.prefix
