"""What a model is (`ModelConfig`) and what a person writes to get one (`ShapeConfig`). Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fledge.errors import ConfigError
from fledge.nn.config import MAX_CONTEXT, StackConfig, bounded

MAX_VOCAB = 1 << 24

InitName = Literal["normal", "gpt2_scaled", "xavier", "he", "constant"]


@dataclass(frozen=True)
class InitConfig:
    """How weights start. `std` is used by "normal" and "gpt2_scaled"; `constant` fills every matrix with `std`."""

    name: InitName = "gpt2_scaled"
    """normal, gpt2_scaled (smaller where a product ends in the residual stream), xavier, he or constant."""
    std: float = 0.02
    """Standard deviation of normal and gpt2_scaled, and of embeddings; the value of constant."""


@dataclass(frozen=True)
class ModelConfig:
    """A whole model. Decoder only is GPT, encoder only is BERT, both is T5.

    `learned_positions`: rows of a learned position table added to the embedding (0: none). `tie`: the output matrix is
    the embedding. `special_ids`: role -> token id (bos, eos, pad), written into config.json.
    """

    family: str
    vocab_size: int
    context_tokens: int
    decoder: StackConfig | None
    encoder: StackConfig | None = None
    learned_positions: int = 0
    tie: bool = False
    init: InitConfig = InitConfig()
    special_ids: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bounded("vocab_size", self.vocab_size, 1, MAX_VOCAB)
        bounded("context_tokens", self.context_tokens, 1, MAX_CONTEXT)
        bounded("learned_positions", self.learned_positions, 0, MAX_CONTEXT)
        if self.decoder is None and self.encoder is None:
            raise ConfigError("model: expected a decoder, an encoder or both, got neither")
        for name, stack in (("decoder", self.decoder), ("encoder", self.encoder)):
            if stack is not None:
                stack.check(name)
        if self.learned_positions and self.learned_positions < self.context_tokens:
            raise ConfigError(
                f"context_tokens: {self.context_tokens} exceeds the {self.learned_positions} learned positions"
            )

    @property
    def stack(self) -> StackConfig:
        """The decoder, or the encoder of an encoder-only model."""
        stack = self.decoder or self.encoder
        assert stack is not None
        return stack


@dataclass(frozen=True)
class ShapeConfig:
    """The size of a new model, in the words of a YAML file. Unset numbers follow the family's custom."""

    family: str = "llama"
    """Which architecture: llama or gpt2; the family decides norm, position, activation and weight names."""
    preset: str = ""
    """A published size (for example gpt2-medium or llama-2-7b); the fields below then change it."""
    width: int = 0
    """Channels of the residual stream."""
    layers: int = 0
    """Number of blocks."""
    heads: int = 0
    """Number of attention heads; width must be a multiple unless head_channels is set."""
    kv_heads: int = 0
    """Number of key/value heads; 0: as many as heads."""
    head_channels: int = 0
    """Channels per head; 0: width / heads."""
    hidden: int = 0
    """Channels inside the feed-forward; 0: the family's custom (4 x width; gated: 8/3 x width, rounded up to 32)."""
    context_tokens: int = 0
    """Longest document in tokens."""
    vocab_size: int = 0
    """Entries of the embedding; 0: the tokenizer's."""
    tie: bool | None = None
    """Whether the output matrix is the embedding; unset: the family's custom."""
    bias: bool | None = None
    """Whether linears and norms have biases; unset: the family's custom."""
    activation: Literal["", "silu", "gelu", "gelu_tanh", "relu"] = ""
    """The feed-forward's activation; empty: the family's custom."""
    rope_theta: float = 0.0
    """Base of the rotary angles; 0: the family's custom."""
    norm_eps: float = 0.0
    """Epsilon of the norms; 0: the family's custom."""
    dropout: float = 0.0
    """Share of activations dropped in training."""
    init: InitConfig = InitConfig()
    """How weights start."""
