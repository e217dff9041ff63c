"""Counts from a config alone: parameters by component, bytes, FLOPs and cache per token. Nothing is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fledge.model.config import ModelConfig
from fledge.model.transformer import build

BITS = {"FP32": 32, "BF16": 16, "INT8": 8, "INT4": 4}
COMPONENTS = ("embedding", "positions", "attention", "ffn", "norm", "output")


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
    for name, parameter in build(config).named_parameters():
        parts[component(name)] += parameter.numel()
    training = flops_per_token(config, config.context_tokens)
    stack = config.stack
    cache = sum(2 * layer.mixer.n_kv_heads * layer.mixer.head_channels for layer in stack.layers) * cache_bits // 8
    return Counts(sum(parts.values()), {k: v for k, v in parts.items() if v}, training / 3, training, cache)


def component(name: str) -> str:
    if "norm" in name:
        return "norm"
    for part in ("embedding", "positions", "output"):
        if name.startswith(part):
            return part
    return "attention" if ".attention." in name else "ffn"


def flops_per_token(config: ModelConfig, document_tokens: int) -> float:
    """Training FLOPs a token: 6 N + 12 · layers · heads · channels · tokens (Chowdhery et al. 2022, appendix B; the
    scores are not halved for causality). N leaves out position tables, and the embedding too when it is not the output
    matrix: a look-up multiplies nothing. Forward alone is a third."""
    n_parameters = sum(p.numel() for name, p in build(config).named_parameters() if multiplies(name, config))
    scores = sum(layer.mixer.n_heads * layer.mixer.head_channels for layer in config.stack.layers)
    return 6.0 * n_parameters + 12.0 * scores * document_tokens


def multiplies(name: str, config: ModelConfig) -> bool:
    if name.startswith("positions."):
        return False
    return config.tie or not name.startswith("embedding.")


def bytes_by_type(n_parameters: int) -> dict[str, int]:
    """Bytes of the weights in each type (INT4 without its group scales)."""
    return {name: n_parameters * bits // 8 for name, bits in BITS.items()}


def tree(module: nn.Module, name: str = "", depth: int = 0, deepest: int = 6) -> list[tuple[int, str, str]]:
    """(depth, name, shapes) of a module tree; equal neighbours of a list are folded into one line `0..11`."""
    rows = [(depth, name or module.__class__.__name__, shapes(module))]
    if depth >= deepest:
        return rows
    children = list(module.named_children())
    if isinstance(module, nn.ModuleList) and children:
        label = f"0..{len(children) - 1}" if len(children) > 1 else "0"
        return rows + tree(children[0][1], label, depth + 1, deepest)
    for child_name, child in children:
        rows += tree(child, child_name, depth + 1, deepest)
    return rows


def shapes(module: nn.Module) -> str:
    return ", ".join(f"{n} {list(p.shape)}" for n, p in module.named_parameters(recurse=False))
