"""What a layer is made of, as data: mixer, feed-forward, position, norm, and the stack they form. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from fledge.errors import ConfigError

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
NormSlot = Literal["before", "after", "residual"]

MAX_WIDTH = 1 << 20
MAX_LAYERS = 4096
MAX_HEADS = 1 << 16
MAX_CONTEXT = 1 << 26


@dataclass(frozen=True)
class Rope:
    """Rotary position (Su et al. 2021, arXiv 2104.09864), half-split pairs: channel c turns with channel c + C/2."""

    theta: float = 10000.0


Position: TypeAlias = Rope | None


@dataclass(frozen=True)
class Heads:
    """Multi-head attention; fewer key/value heads than heads is grouped-query (one: multi-query)."""

    n_heads: int
    n_kv_heads: int
    head_channels: int
    qkv_bias: bool = False
    out_bias: bool = False


@dataclass(frozen=True)
class Dense:
    """Feed-forward of one hidden layer; `gated` multiplies activation(gate(x)) with up(x) (SwiGLU and kin)."""

    hidden: int
    activation: Activation
    gated: bool = False
    bias: bool = False


@dataclass(frozen=True)
class Norm:
    """LayerNorm ("layer") or RMSNorm ("rms")."""

    kind: Literal["layer", "rms"]
    eps: float
    bias: bool = False


@dataclass(frozen=True)
class LayerConfig:
    """One block: how tokens mix, how channels mix, how the mixer knows positions, how far it sees."""

    mixer: Heads
    ffn: Dense
    position: Position = None
    window: int | None = None


@dataclass(frozen=True)
class StackConfig:
    """A stack of blocks. `norm_at`: which slots around a sublayer hold a norm ("before": pre-norm)."""

    width: int
    layers: tuple[LayerConfig, ...]
    norm: Norm
    norm_at: tuple[NormSlot, ...] = ("before",)
    causal: bool = True
    dropout: float = 0.0

    def check(self, at: str) -> None:
        """Raise ConfigError for sizes that cannot be built, before anything is allocated."""
        bounded(f"{at}.width", self.width, 1, MAX_WIDTH)
        bounded(f"{at}.layers", len(self.layers), 1, MAX_LAYERS)
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"{at}.dropout: expected 0 <= dropout < 1, got {self.dropout}")
        for index, layer in enumerate(self.layers):
            place = f"{at}.layers[{index}]"
            heads = layer.mixer
            bounded(f"{place}.n_heads", heads.n_heads, 1, MAX_HEADS)
            bounded(f"{place}.n_kv_heads", heads.n_kv_heads, 1, heads.n_heads)
            bounded(f"{place}.head_channels", heads.head_channels, 1, MAX_WIDTH)
            bounded(f"{place}.ffn.hidden", layer.ffn.hidden, 1, 64 * MAX_WIDTH)
            if heads.n_heads % heads.n_kv_heads:
                raise ConfigError(
                    f"{place}: n_heads {heads.n_heads} is not a multiple of n_kv_heads {heads.n_kv_heads}; "
                    f"nearest is {nearest_divisor(heads.n_heads, heads.n_kv_heads)}"
                )
            if layer.position is not None and heads.head_channels % 2:
                raise ConfigError(f"{place}: rotary position needs an even head_channels, got {heads.head_channels}")


def bounded(at: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{at}: expected an integer in {low}..{high}, got {str(value)[:40]}")


def nearest_divisor(whole: int, wanted: int) -> int:
    """The divisor of `whole` that is nearest to `wanted`."""
    return min((d for d in range(1, whole + 1) if whole % d == 0), key=lambda d: abs(d - wanted))
