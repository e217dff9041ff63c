"""The transformer: embedding, a stack of blocks, output. Which kind it is, its config says.

B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.batch import Cached, Layout, OneDocument, Packed, Padded, Tokens
from fledge.device import available_bytes
from fledge.errors import ConfigError
from fledge.model.config import ModelConfig
from fledge.nn.block import Angles, Context, Stack, angles_for
from fledge.nn.cache import KeyValueCache
from fledge.nn.config import Rope
from fledge.nn.linear import Linear, PackedLinear
from fledge.nn.losses import fused_cross_entropy_sum
from fledge.nn.position import rope_table


class Transformer(nn.Module):
    """A model built from `config`; weights are allocated but have no values yet (see `init` and `folder`)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        if config.decoder is None or config.encoder is not None:
            raise ConfigError("model: expected a decoder only; encoders are not built yet")
        width = config.decoder.width
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, width, _weight=torch.empty(config.vocab_size, width))
        rows = config.learned_positions
        self.positions: nn.Embedding | None = None
        if rows:
            self.positions = nn.Embedding(rows, width, _weight=torch.empty(rows, width))
        self.decoder = Stack(config.decoder)
        self.output: Linear | PackedLinear | None = None if config.tie else Linear(width, config.vocab_size)
        self._angles: dict[object, Angles] = {}

    def forward(self, tokens: Tokens, layout: Layout, cache: KeyValueCache | None = None) -> Tensor:
        """Logits [B, T, V] of every token."""
        return self.logits(self.hidden(tokens, layout, cache))

    def hidden(self, tokens: Tokens, layout: Layout, cache: KeyValueCache | None = None) -> Tensor:
        """What the output product sees: [B, T, D]."""
        length = longest_document(layout, tokens.ids.shape[1])
        if length > self.config.context_tokens:
            raise ConfigError(
                f"tokens: expected documents of at most {self.config.context_tokens} tokens, got {length}"
            )
        x = tokens.embeds if tokens.embeds is not None else self.embedding(tokens.ids)
        in_order = isinstance(layout, OneDocument | Padded)
        if self.positions is not None:
            # rows that count 0, 1, 2… share one slice; its gradient is a sum, not a scatter
            x = x + (self.positions.weight[: x.shape[1]] if in_order else self.positions(tokens.pos))
        table = self.angle_table(x.device, length)
        context = Context(tokens, layout, angles_for(table, tokens, in_order), cache)
        return self.decoder(x, context)

    def logits(self, hidden: Tensor) -> Tensor:
        """The output product: [..., D] -> [..., V]."""
        return F.linear(hidden, self.output_matrix) if self.output is None else self.output(hidden)

    @property
    def output_matrix(self) -> Tensor:
        """The [V, D] matrix of the output product: the embedding when tied."""
        if self.output is None:
            return self.embedding.weight
        return self.output.weight.t() if isinstance(self.output, PackedLinear) else self.output.weight

    def loss_sum(self, tokens: Tokens, layout: Layout, targets: Tensor, weight: Tensor) -> Tensor:
        """Σ weight · nats of `targets` [B, T] under the model, without holding all logits."""
        if isinstance(layout, Cached):
            raise TypeError("loss_sum: expected a layout of whole documents, got Cached")
        return fused_cross_entropy_sum(self.hidden(tokens, layout), self.output_matrix, targets, weight)

    def angle_table(self, device: torch.device, length: int) -> dict[object, Angles]:
        """Rotary tables by position config, float32 [>= length, C/2], grown by doubling as longer documents come."""
        stack = self.config.stack
        for layer in stack.layers:
            position = layer.position
            if not isinstance(position, Rope):
                continue
            known = self._angles.get(position)
            if known is None or known[0].device != device or known[0].shape[0] < length:
                rows = min(self.config.context_tokens, max(256, 2 ** (length - 1).bit_length()))
                # a table born in a validation outlives it, and autograd saves no tensor of inference mode
                with torch.inference_mode(False):
                    self._angles[position] = rope_table(position, layer.mixer.head_channels, rows, device)
        return self._angles


def longest_document(layout: Layout, row_tokens: int) -> int:
    """Tokens of the longest document in a batch, known on the host."""
    if isinstance(layout, Packed):
        return layout.longest
    if isinstance(layout, Cached):
        return max(start + count for start, count in zip(layout.starts, layout.counts, strict=True))
    return row_tokens


def build(config: ModelConfig, device: torch.device | str = "meta") -> Transformer:
    """A Transformer whose weights are allocated on `device`; on "meta" nothing is allocated."""
    with torch.device(device):
        return Transformer(config)


def new_cache(model: Transformer, n_slots: int, positions: int | None = None) -> KeyValueCache:
    """An empty cache for `model`, in its dtype and on its device. Raises ConfigError if memory does not hold it."""
    stack, weight = model.config.stack, model.embedding.weight
    mixer = stack.layers[0].mixer
    length = positions or model.config.context_tokens
    need = 2 * len(stack.layers) * n_slots * mixer.n_kv_heads * length * mixer.head_channels * weight.itemsize
    free = available_bytes(weight.device)
    if free is not None and need > free:
        raise ConfigError(
            f"cache: expected at most the {free:,} bytes of free memory, got {need:,} for {n_slots} slots of "
            f"{length} tokens; give fewer slots or a shorter context (engine.n_slots, engine.context_tokens)"
        )
    return KeyValueCache(
        len(stack.layers), n_slots, mixer.n_kv_heads, length, mixer.head_channels, weight.dtype, weight.device
    )
