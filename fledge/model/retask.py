"""Another task on the same body: a classifier on a pre-trained encoder, a reward on a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fledge.model.config import ModelConfig
from fledge.model.families import family
from fledge.model.families.family import Family
from fledge.model.families.task import task_named
from fledge.model.folder import config_json, put_parameter, state_in_their_names, weights_in_files
from fledge.model.init import fill, generator_for, start_value
from fledge.model.names import expanded, their_shape, to_ours
from fledge.model.transformer import Transformer, build


def retask(
    model: Transformer, task: str, labels: int | Sequence[str] = 2, problem: str = "", seed: int = 0
) -> Transformer:
    """A model for `task` (a word of the family: sequence, token, span, lm…) whose body is `model`'s, tensors shared.

    `labels`: how many a sequence or token head has, or their names; one is a regression, or a reward. What the body has
    no weights for starts at random from `seed`, except a pooler that both classes have. Raises ConfigError for a task
    that the family has no class for.
    """
    own = family(model.config.family)
    return with_body_of(model, own, task_config(model.config, task, labels, problem), seed)


def task_config(config: ModelConfig, task: str, labels: int | Sequence[str] = 2, problem: str = "") -> ModelConfig:
    """The config of the model for `task` on the body of `config`'s. Raises as `retask`."""
    own = family(config.family)
    raw: dict[str, Any] = config_json(config, torch.float32)
    raw = {key: value for key, value in raw.items() if key not in ("id2label", "label2id", "problem_type")}
    raw["architectures"] = [task_named(own.all_tasks, task).architecture]
    raw |= {"num_labels": labels} if isinstance(labels, int) else {"id2label": dict(enumerate(labels))}
    if problem:
        raw["problem_type"] = problem
    return own.config_of(raw)


def with_body_of(model: Transformer, own: Family, config: ModelConfig, seed: int) -> Transformer:
    target = build(config)
    shapes = {name: tuple(p.shape) for name, p in target.named_parameters()}
    device, dtype = model.embedding.weight.device, model.embedding.weight.dtype
    known = shared_weights(model, own)
    for weight in expanded(own, config):
        tensor = known.get(prefixed(own, weight.theirs))
        if tensor is not None and tuple(tensor.shape) == their_shape(weight, shapes):
            for name, value in to_ours(weight, tensor.to(device), shapes).items():
                put_parameter(target, name, value)
    for name, value in model.named_parameters():  # the body's own tensors, not copies
        if name in shapes and not name.startswith("heads.") and shapes[name] == tuple(value.shape):
            put_parameter(target, name, value.detach())
    with torch.no_grad():
        for name, parameter in list(target.named_parameters()):
            if parameter.is_meta:
                put_parameter(target, name, torch.empty(parameter.shape, dtype=dtype, device=device))
                fresh = target.get_parameter(name)
                if fresh.dim() < 2:
                    fresh.fill_(start_value(target, name))
                else:
                    fill(fresh, name, config.init, len(config.stack.layers), generator_for(seed, name))
    return target.train(model.training)


def shared_weights(model: Transformer, own: Family) -> dict[str, torch.Tensor]:
    """The tensors of a model that its bare class has too, and its output: by their name with the family's prefix."""
    heads = {
        f"{theirs}.{end}"
        for task in own.all_tasks
        for head in task.heads
        for part, theirs in head.modules().items()
        for end in ("weight", "bias")
        if not (own.prefix and theirs.startswith(own.prefix))
    }
    # a head's names can also be those of the output (ModernBERT): only what is a head's in this model is left out
    files = weights_in_files(model.config).items()
    heads &= {name.removeprefix(own.prefix) for name, row in files if any(o.startswith("heads.") for o in row.ours)}
    state = {prefixed(own, name): tensor for name, tensor in state_in_their_names(model).items()}
    return {name: tensor for name, tensor in state.items() if name.removeprefix(own.prefix) not in heads}


def prefixed(own: Family, name: str) -> str:
    return name if name.startswith(own.prefix) else own.prefix + name
