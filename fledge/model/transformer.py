"""The transformer: embedding, stacks of blocks, output. Which kind it is, its config says.

B rows, T tokens, S source tokens, D width, E embedding width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.batch import GLOBAL, Cached, Layout, OneDocument, Packed, Padded, Tokens, one_document
from fledge.device import available_bytes
from fledge.errors import ConfigError
from fledge.model.config import ModelConfig
from fledge.model.heads import OutputTransform, TaskHead
from fledge.nn.adapter import Adapter, LowRankEmbedding
from fledge.nn.attention import Angles, Context
from fledge.nn.block import Stack, angles_for
from fledge.nn.cache import BLOCK_TOKENS, KeyValueCache, blocks_of
from fledge.nn.config import Kernelised, StackConfig
from fledge.nn.lengths import Span, regime, rotary, spans_by_length
from fledge.nn.linear import Linear, PackedLinear
from fledge.nn.losses import cross_entropy_sum, fused_cross_entropy_sum
from fledge.nn.native.linear import NativeLinear
from fledge.nn.position import rope_table
from fledge.nn.quantized import Int4Linear, Int8Linear, Quantized
from fledge.nn.virtual import Prefix, VirtualTokens, lengthened

Source: TypeAlias = tuple[Tokens, Layout]
MAX_TABLES = 16


class Transformer(nn.Module):
    """A model built from `config`; weights are allocated but have no values yet (see `init` and `folder`).

    With encoder and decoder, `source` gives the encoder's tokens; what the encoder made of them can be kept and given
    again as `encoded`. With a cache, what is read of a source stays in it (`keep_source`) and the layout names it.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.generation: dict[str, Any] = {}  # what its folder's generation_config.json says
        width, vocab = config.embedding_width, config.vocab_size
        self.embedding = nn.Embedding(vocab, width, _weight=torch.empty(vocab, width))
        self.encoder = Stack(config.encoder) if config.encoder is not None else None
        self.decoder = Stack(config.decoder) if config.decoder is not None else None
        reads = config.stack.width
        self.transform: OutputTransform | None = None
        if config.transform is not None:
            self.transform = OutputTransform(reads, width, config.transform)
        self.output: Linear | PackedLinear | NativeLinear | Quantized | None = None
        if config.lm and not config.tie:
            self.output = Linear(width if config.transform else reads, vocab)
        self.output_bias = nn.Parameter(torch.empty(vocab)) if config.output_bias else None
        self.heads = nn.ModuleDict({head.name: TaskHead(reads, head, config.stack.norm) for head in config.heads})
        self.embedding_adapter: LowRankEmbedding | None = None  # of tuning, as `output_adapter`
        self.output_adapter: Adapter | None = None
        self.virtual: VirtualTokens | None = None
        self._angles: dict[object, Angles] = {}

    def checkpoint_blocks(self, on: bool = True) -> Transformer:
        """Have training keep each block's input alone and compute its activations again in the backward pass: the same
        gradients in less memory and more time. Raises ConfigError for BatchNorm, whose averages would move twice."""
        for stack in (self.encoder, self.decoder):
            if stack is None:
                continue
            if on and stack.config.norm.kind == "batch":
                raise ConfigError(
                    "checkpoint_blocks: expected layer or rms norms, got batch, whose running averages would move "
                    "twice a step; use model.norm=layer, or leave it off"
                )
            stack.checkpoints_blocks = on
        return self

    def forward(
        self,
        tokens: Tokens,
        layout: Layout,
        cache: KeyValueCache | None = None,
        source: Source | None = None,
        encoded: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V] of every token."""
        return self.logits(self.hidden(tokens, layout, cache, source, encoded))

    def hidden(
        self,
        tokens: Tokens,
        layout: Layout,
        cache: KeyValueCache | None = None,
        source: Source | None = None,
        encoded: Tensor | None = None,
    ) -> Tensor:
        """The last stack's output: [B, T, D]."""
        if self.virtual is not None:
            return self.behind_virtual(self.virtual, tokens, layout, cache)
        if self.decoder is None:
            return self.encode(tokens, layout)
        if self.encoder is not None and encoded is None and not isinstance(layout, Cached):
            if source is None:
                raise ConfigError("model: expected source tokens for the encoder, got none")
            encoded = self.encode(*source)
        context = self.context(self.decoder.config, tokens, layout, cache)
        context.source, context.source_tokens = encoded, source
        return self.decoder(self.embed(tokens), context)

    def behind_virtual(
        self, virtual: VirtualTokens, tokens: Tokens, layout: Layout, cache: KeyValueCache | None
    ) -> Tensor:
        """`hidden` of tokens that stand behind virtual ones, which are not given back. Raises ConfigError for a cache
        beside embeddings whose keys nobody has computed yet."""
        stack = self.encoder if self.decoder is None else self.decoder
        assert stack is not None
        keys_and_values = virtual.keys_and_values()
        if isinstance(layout, Cached):
            if keys_and_values is None:
                raise ConfigError("model: expected keys and values of the virtual tokens, got embeddings; settle them")
            tokens = replace(tokens, pos=tokens.pos + virtual.n_tokens)
            context = self.context(stack.config, tokens, layout, cache)
            context.prefix = Prefix(keys_and_values, None)
            return stack(self.embed(tokens), context)
        longer = lengthened(tokens, layout, virtual.n_tokens)
        own = self.embed(tokens)
        first = F.embedding(longer.place.clamp(min=0), virtual.embeddings(own.shape[-1]).to(own.dtype))
        rest = F.embedding(longer.source, own.flatten(0, 1))
        rows = torch.where((longer.place >= 0)[:, :, None], first, rest)
        context = self.context(stack.config, longer.tokens, longer.layout)
        context.prefix = None if keys_and_values is None else Prefix(keys_and_values, longer.place)
        hidden = stack(rows, context)
        return hidden.flatten(0, 1).index_select(0, longer.back).unflatten(0, tokens.ids.shape)

    def encode(self, tokens: Tokens, layout: Layout) -> Tensor:
        """The encoder's output: [B, T, D]."""
        if self.encoder is None:
            raise ConfigError("model: expected an encoder, got a decoder only")
        return self.encoder(self.embed(tokens), self.context(self.encoder.config, tokens, layout))

    def keep_source(self, cache: KeyValueCache, name: bytes, ids: Tensor) -> None:
        """Encode a source, int64 [S], and have the cache keep under `name` what the decoder reads of it, until it is
        taken from `cache.sources`. Raises ConfigError for a model without an encoder or a decoder."""
        if self.decoder is None:
            raise ConfigError("model: expected a decoder that reads a source, got an encoder only")
        encoded = self.encode(one_document(ids[None]), OneDocument())
        kept: dict[object, tuple[Tensor, Tensor]] = {}
        for block in self.decoder.blocks():
            assert block.cross is not None
            k, v = block.cross.keys_and_values(encoded)
            # heads first and side by side, as every token reads them
            kept[block.cross] = (k[0].transpose(0, 1).contiguous(), v[0].transpose(0, 1).contiguous())
        cache.sources[name] = kept

    def embed(self, tokens: Tokens) -> Tensor:
        """[B, T, E]."""
        if tokens.embeds is not None:
            return tokens.embeds
        rows = self.embedding(tokens.ids)
        return rows if self.embedding_adapter is None else self.embedding_adapter.looked_up(tokens.ids, rows)

    def context(
        self, stack: StackConfig, tokens: Tokens, layout: Layout, cache: KeyValueCache | None = None
    ) -> Context:
        ahead = self.virtual.n_tokens if self.virtual is not None and isinstance(layout, Cached) else 0
        length = longest_document(layout, tokens.ids.shape[1]) + ahead
        if length > self.config.context_tokens:
            n_virtual = self.config.context_tokens - self.document_tokens
            behind = f" behind {n_virtual} virtual ones" if n_virtual else ""
            raise ConfigError(
                f"tokens: expected documents of at most {self.document_tokens} tokens{behind}, got {length - n_virtual}"
            )
        # a cache's keys stay turned as they were written, so frequencies that depend on the document's length go by the
        # cache's, whatever the document has grown to and whatever its company is
        whole = length if cache is None else cache.context_tokens + ahead
        spans = [] if cache is not None else spans_by_length(stack, layout, tokens.ids.shape[1])
        if spans:
            return Context(tokens, layout, self.angles_by_document(stack, tokens, length, spans))
        tables = self.angle_tables(stack, tokens.ids.device, length, whole)
        return Context(
            tokens, layout, angles_for(tables, tokens, isinstance(layout, OneDocument | Padded)), cache=cache
        )

    def angles_by_document(
        self, stack: StackConfig, tokens: Tokens, length: int, spans: list[Span]
    ) -> dict[object, Angles]:
        """Rotary (cos, sin) by position config, each [B, T, 1, R/2], every document's by its own length."""
        pos, shape = tokens.pos.flatten(), tokens.ids.shape
        parts: dict[object, tuple[list[Tensor], list[Tensor]]] = {}
        for start, stop, n_tokens in spans:
            tables = self.angle_tables(stack, pos.device, length, n_tokens)
            for position, pair in tables.items():
                for found, table in zip(parts.setdefault(position, ([], [])), pair, strict=True):
                    found.append(table[pos[start:stop]])
        angles = {}
        for position, (cos, sin) in parts.items():
            angles[position] = (torch.cat(cos).view(*shape, 1, -1), torch.cat(sin).view(*shape, 1, -1))
        return angles

    def logits(self, hidden: Tensor) -> Tensor:
        """The output product: [..., D] -> [..., V], rows that fill the vocabulary up left out."""
        config = self.config
        hidden = self.before_output(hidden)
        n_tokens = config.tokens or config.vocab_size
        hidden = hidden if self.output_adapter is None else self.output_adapter.before(hidden)
        logits = self.product(hidden, n_tokens)
        if self.output_adapter is not None:
            bias = None if self.output_bias is None else self.output_bias[:n_tokens]
            logits = self.output_adapter(hidden, logits, lambda: self.output_matrix, bias)
        if config.logit_softcap is not None:
            logits = torch.tanh(logits / config.logit_softcap) * config.logit_softcap
        return logits

    def product(self, hidden: Tensor, n_tokens: int) -> Tensor:
        """[..., D] by the first `n_tokens` rows of the output matrix, and their bias."""
        bias = None if self.output_bias is None else self.output_bias[:n_tokens]
        if isinstance(self.output, PackedLinear | NativeLinear | Int8Linear | Int4Linear):
            logits = self.output(hidden)[..., :n_tokens]
            return logits if bias is None else logits + bias
        return F.linear(hidden, self.output_matrix, bias)

    def before_output(self, hidden: Tensor) -> Tensor:
        """What the output product reads."""
        if self.transform is not None:
            hidden = self.transform(hidden)
        return hidden if self.config.logit_scale == 1.0 else hidden * self.config.logit_scale

    @property
    def document_tokens(self) -> int:
        """Tokens of the longest document: what virtual tokens leave of the context."""
        return self.config.context_tokens - (0 if self.virtual is None else self.virtual.n_tokens)

    @property
    def output_matrix(self) -> Tensor:
        """The [V, D] matrix of the output product: the embedding when tied, what its whole numbers stand for when
        quantized. Raises ConfigError if there is none."""
        if self.output is None:
            if not self.config.lm:
                raise ConfigError("model: expected an output product over the vocabulary, got a model without one")
            matrix = self.embedding.weight
        elif isinstance(self.output, Int8Linear | Int4Linear):
            matrix = self.output.dequantized()
        else:
            matrix = self.output.weight.t() if isinstance(self.output, PackedLinear) else self.output.weight
        return matrix[: self.config.tokens] if self.config.tokens else matrix

    def loss_sum(
        self, tokens: Tokens, layout: Layout, targets: Tensor, weight: Tensor, source: Source | None = None
    ) -> Tensor:
        """Σ weight · nats of `targets` [B, T] under the model, without holding all logits where its output allows."""
        if isinstance(layout, Cached):
            raise TypeError("loss_sum: expected a layout of whole documents, got Cached")
        hidden = self.hidden(tokens, layout, source=source)
        changed = self.config.logit_softcap is not None or self.output_adapter is not None
        if changed or isinstance(self.output, Int8Linear | Int4Linear):
            return cross_entropy_sum(self.logits(hidden), targets, weight)
        matrix = self.output_matrix
        bias = None if self.output_bias is None else self.output_bias[: matrix.shape[0]]
        return fused_cross_entropy_sum(self.before_output(hidden), matrix, targets, weight, bias)

    def head(self, name: str, tokens: Tokens, layout: Layout, source: Source | None = None) -> Tensor:
        """What the task head `name` answers: [B, labels] or [B, T, labels].

        An encoder–decoder without `source` reads the tokens as its source, and again one place later in the decoder.
        """
        if name not in self.heads:
            raise ConfigError(f"model: expected a head {name!r}, got {', '.join(self.heads) or 'none'}")
        task_head = self.heads[name]
        assert isinstance(task_head, TaskHead)
        if tokens.kind is None and task_head.config.global_first:
            kind = torch.zeros_like(tokens.ids)
            kind[:, 0] = GLOBAL
            tokens = replace(tokens, kind=kind)
        if self.encoder is not None and self.decoder is not None and source is None:
            source, tokens = (tokens, layout), self.one_later(tokens)
        hidden = self.hidden(tokens, layout, source=source)
        return task_head(hidden, tokens, layout, self.config.special_ids.get("eos"))

    def one_later(self, tokens: Tokens) -> Tokens:
        """Every document one place to the right, behind the id that the decoder starts with. Raises ConfigError."""
        start = self.config.special_ids.get("start")
        if start is None:
            raise ConfigError("model: expected a start id for the decoder, got none; set special_ids.start")
        return replace(tokens, ids=torch.where(tokens.pos == 0, start, tokens.ids.roll(1, 1)))

    def angle_tables(self, stack: StackConfig, device: torch.device, length: int, whole: int) -> dict[object, Angles]:
        """Rotary tables by position config, float32 [>= length, R/2], grown by doubling as longer documents come.
        `whole`: tokens of the document for frequencies that depend on it."""
        tables: dict[object, Angles] = {}
        for position, channels in rotary(stack):
            variant = (position, channels, regime(position, whole))
            known = self._angles.get(variant)
            if known is None or known[0].device != device or known[0].shape[0] < length:
                rows = min(self.config.context_tokens, max(256, 2 ** (length - 1).bit_length()))
                # a table born in a validation outlives it, and autograd saves no tensor of inference mode
                with torch.inference_mode(False):
                    known = rope_table(position, channels, rows, whole, device)
                if len(self._angles) > MAX_TABLES:  # dynamic scaling has a table for each length
                    self._angles.clear()
                self._angles[variant] = known
            tables[position] = known
        return tables


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


CACHE_SHARE = 0.5
"""Of the free memory: what a cache may take when nobody says how large it shall be."""


def new_cache(
    model: Transformer,
    n_documents: int,
    context_tokens: int | None = None,
    cache_tokens: int = 0,
    int8: bool = False,
    n_sharers: int = 1,
    agreed: Callable[[int], int] = int,
) -> KeyValueCache:
    """An empty cache for `model`, in its dtype (or int8) and on its device, with room for `cache_tokens`.

    With 0, for `n_documents` whole contexts, or for what half of the free memory holds if that is less; always for one
    whole context. `n_sharers` processes take theirs of the same memory; `agreed` makes of the number of blocks that
    this process would take the one that all take. Raises ConfigError if memory does not hold it.
    """
    stack, weight = model.config.stack, model.embedding.weight
    if not stack.causal:
        raise ConfigError("cache: expected a decoder, got an encoder; an encoder computes whole documents")
    length = context_tokens or model.config.context_tokens
    held = model.encoder if model.decoder is None else model.decoder
    assert held is not None
    mixers = [block.attention.config for block in held.in_order()]  # those of a process that holds a part of the model
    heads = tuple(None if isinstance(m, Kernelised) else (m.n_kv_heads, m.head_channels) for m in mixers)
    token_bytes = sum(2 * one[0] * (one[1] + 4 if int8 else one[1] * weight.itemsize) for one in heads if one)
    n_blocks = max(1, cache_tokens // BLOCK_TOKENS) if cache_tokens else n_documents * blocks_of(length)
    free = available_bytes(weight.device)
    if free is not None and token_bytes and not cache_tokens:
        affordable = int(free * CACHE_SHARE) // (n_sharers * token_bytes * BLOCK_TOKENS)
        n_blocks = min(n_blocks, max(blocks_of(length), affordable))
    n_blocks = agreed(n_blocks)
    if free is not None:
        need = n_blocks * BLOCK_TOKENS * token_bytes
        if need > free:
            raise ConfigError(
                f"cache: expected at most the {free:,} bytes of free memory, got {need:,} for "
                f"{n_blocks * BLOCK_TOKENS} tokens; give a shorter context or fewer tokens "
                "(engine.context_tokens, engine.cache_tokens)"
            )
    return KeyValueCache(heads, n_blocks, length, weight.dtype, weight.device, int8)


def window_of(model: Transformer) -> int | None:
    """How many tokens, itself among them, a token reads of the cache at most; None: its whole document."""
    reach = 1
    for layer in model.config.stack.layers:
        if isinstance(layer.mixer, Kernelised):
            continue  # a state of fixed size
        if layer.window is None or layer.pattern is not None:
            return None
        reach = max(reach, layer.window)
    return reach
