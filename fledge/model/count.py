"""Counts from a config alone: parameters by component, bytes, FLOPs and cache per token. Nothing is allocated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fledge.model.config import ModelConfig
from fledge.model.pairs import inner, keys_per_query
from fledge.model.transformer import build
from fledge.nn.config import Kernelised, LayerConfig, Moe

BITS = {"FP32": 32, "BF16": 16, "INT8": 8, "INT4": 4}
DEEPEST = 6  # levels of the tree of modules
STACK_POSITIONS = (".bias.weight", ".distances.weight")
COMPONENTS = ("embedding", "positions", "kinds", "attention", "cross", "ffn", "norm", "output", "heads")


@dataclass(frozen=True)
class Counts:
    """Parameters in all and by component (tied weights once), and what a token costs."""

    parameters: int
    by_component: dict[str, int]
    flops_per_token: float
    training_flops_per_token: float
    cache_bytes_per_token: int


def count(config: ModelConfig, cache_bits: int = 32) -> Counts:
    """Counts of a model from its config. FLOPs per token are for a full context (see `flops_per_token`)."""
    parts = dict.fromkeys(COMPONENTS, 0)
    for name, n_numbers, n_blocks in parameters(config):
        parts[component(name)] += n_numbers * n_blocks
    training = flops_per_token(config, config.context_tokens)
    cache = sum(cached_numbers(layer) for layer in config.stack.layers) * cache_bits // 8 if config.stack.causal else 0
    return Counts(sum(parts.values()), {k: v for k, v in parts.items() if v}, training / 3, training, cache)


def condensed(config: ModelConfig) -> tuple[ModelConfig, dict[str, list[int]]]:
    """The model with one block of each kind, and how many blocks each of them stands for, by stack: thousands of
    experts take seconds to build, even without memory."""
    stacks, times = {}, {}
    for name, stack in config.stacks.items():
        kinds = list(dict.fromkeys(stack.layers))
        stacks[name] = stack if stack.shared else replace(stack, layers=tuple(kinds))
        times[name] = [1] * stack.n_blocks if stack.shared else [stack.layers.count(kind) for kind in kinds]
    changed: dict[str, Any] = stacks
    return replace(config, **changed), times


def parameters(config: ModelConfig) -> Iterator[tuple[str, int, int]]:
    """(name, numbers, blocks that have one) of every parameter of the condensed model."""
    small, times = condensed(config)
    for name, parameter in build(small).named_parameters():
        stack, _, rest = name.partition(".layers.")
        yield name, parameter.numel(), times[stack][int(rest.partition(".")[0])] if rest else 1


def cached_numbers(layer: LayerConfig) -> int:
    """Numbers that a layer keeps for each token of a document."""
    mixer = layer.mixer
    return 0 if isinstance(mixer, Kernelised) else 2 * mixer.n_kv_heads * mixer.head_channels


def component(name: str) -> str:
    """Which of COMPONENTS a parameter belongs to."""
    if name.startswith("heads."):
        return "heads"
    if name.startswith(("output", "transform.")):
        return "output"
    if "norm" in name:
        return "norm"
    if name.startswith("embedding.") or ".inputs.widen." in name:
        return "embedding"
    if ".inputs.positions." in name or name.endswith(STACK_POSITIONS) and ".layers." not in name:
        return "positions"
    for part in ("kinds", "cross", "attention"):
        if f".{part}." in name:
            return part
    return "ffn"


def flops_per_token(config: ModelConfig, document_tokens: int) -> float:
    """Training FLOPs a token: 6 N + 12 · layers · heads · channels · tokens (Chowdhery et al. 2022, appendix B; the
    scores are not halved for causality). N leaves out position tables, and the embedding too when it is not the output
    matrix: a look-up multiplies nothing. Windows and patterns take their share of the tokens (`pairs`). Forward
    alone is a third."""
    scores = 0.0
    for stack in config.stacks.values():
        for layer, times in Counter(stack.layers).items():
            scores += times * keys_per_query(layer, document_tokens, stack.causal) * inner(layer.mixer)
        if stack.cross is not None:
            scores += len(stack.layers) * inner(stack.cross) * document_tokens
    return weight_flops_per_token(config) + 12.0 * scores


def weight_flops_per_token(config: ModelConfig) -> float:
    """The 6 N of `flops_per_token`."""
    small, _ = condensed(config)
    return 6.0 * sum(uses(name, small) * n_numbers * n_blocks for name, n_numbers, n_blocks in parameters(config))


def uses(name: str, config: ModelConfig) -> float:
    """How often a token meets a parameter: shared blocks more than once, experts by the share that is chosen."""
    if not multiplies(name, config):
        return 0.0
    stack_name, _, rest = name.partition(".layers.")
    if not rest:
        return 1.0
    stack = config.stacks[stack_name]
    block = int(rest.partition(".")[0])
    layers = [layer for layer, used in zip(stack.layers, stack.block_of_layer, strict=True) if used == block]
    ffn = layers[0].ffn
    share = ffn.top_k / ffn.n_experts if isinstance(ffn, Moe) and ".experts." in name else 1.0
    return len(layers) * share


def multiplies(name: str, config: ModelConfig) -> bool:
    if ".global_qkv." in name or name.endswith(".attention.projection"):
        return False  # no token is global; what Linformer's mixing costs, `pairs` tells
    if ".inputs.positions." in name or ".inputs.kinds." in name or name.endswith("coder.distances.weight"):
        return False
    return config.tie or not name.startswith("embedding.")


def bytes_by_type(n_parameters: int) -> dict[str, int]:
    """Bytes of the weights in each type (INT4 without its group scales)."""
    return {name: n_parameters * bits // 8 for name, bits in BITS.items()}


def tree(config: ModelConfig) -> list[tuple[int, str, str]]:
    """(depth, name, shapes) of a model's modules; the members of a list are folded into one line `0..11`."""
    model = build(condensed(config)[0])
    blocks = {f"{name}.layers": stack.n_blocks for name, stack in config.stacks.items()}
    return branch(model, model.__class__.__name__, "", blocks)


def branch(module: nn.Module, label: str, path: str, lengths: dict[str, int]) -> list[tuple[int, str, str]]:
    """`lengths`: members of the lists that stand for more than they hold, by path."""
    depth = len(path.split(".")) if path else 0
    rows = [(depth, label, shapes(module))]
    if depth >= DEEPEST:
        return rows
    children = list(module.named_children())
    if isinstance(module, nn.ModuleList) and children:
        n = lengths.get(path, len(children))
        children = children[:1]
        return rows + branch(children[0][1], f"0..{n - 1}" if n > 1 else "0", f"{path}.0", lengths)
    for name, child in children:
        rows += branch(child, name, f"{path}.{name}" if path else name, lengths)
    return rows


def shapes(module: nn.Module) -> str:
    return ", ".join(f"{n} {list(p.shape)}" for n, p in module.named_parameters(recurse=False))
