"""What each token attends to: the weights of every layer and head, as numpy arrays.

The maps are computed beside an ordinary forward pass by hooks that live as long as the call, so the ordinary pass pays
nothing for them. B rows, T query tokens, S key tokens, L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fledge.batch import GLOBAL, Layout, OneDocument, Packed, Tokens, one_document
from fledge.errors import ConfigError
from fledge.model.folder import find_model, load_model
from fledge.model.transformer import Source, Transformer
from fledge.nn.attention import Attention, Context, CrossAttention
from fledge.nn.config import Kernelised
from fledge.nn.kernels import counted, probabilities
from fledge.nn.linear_attention import shares
from fledge.nn.visibility import Sight, kinds, visible
from fledge.text.sides import framed
from fledge.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

Maps = dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class AttentionMaps:
    """The attention of one text. `tokens` are the queries' (a decoder's, or an encoder's when alone), `source_tokens`
    those of an encoder with a decoder.

    `encoder`, `decoder`: float32 [L, H, T, T]; `cross`: [L, H, T, S]; None where there is no such attention. A row sums
    to 1: it says how much of each key's value a query takes.
    """

    tokens: list[str]
    source_tokens: list[str]
    encoder: np.ndarray | None = None
    decoder: np.ndarray | None = None
    cross: np.ndarray | None = None

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """The arrays that there are, by name."""
        pairs = {"encoder": self.encoder, "cross": self.cross, "decoder": self.decoder}
        return {name: array for name, array in pairs.items() if array is not None}

    def texts(self, part: str) -> tuple[list[str], list[str]]:
        """Queries' and keys' tokens of a part."""
        source = self.source_tokens or self.tokens
        return (source, source) if part == "encoder" else (self.tokens, source if part == "cross" else self.tokens)

    def entropy(self, part: str) -> np.ndarray:
        """Mean entropy of a head's rows in bits, float64 [L, H]: 0 looks at one token, log2 of T at all alike."""
        weights = self.parts[part].astype(np.float64)
        logs = np.log2(np.where(weights > 0, weights, 1.0))
        return -(weights * logs).sum(-1).mean(-1)


def attention_maps(
    model: str | Path | Transformer,
    text: str,
    target: str | None = None,
    tokenizer: Tokenizer | None = None,
    max_tokens: int | None = None,
) -> AttentionMaps:
    """The attention of a model over `text`; an encoder-decoder reads `text` and `target` is what it has said.

    `model`: a model or run folder, or a model with its `tokenizer`. Raises ConfigError for a model without weights
    between tokens (Linformer), for a `target` without a decoder to say it, and for a text that is empty or too long.
    """
    if not isinstance(model, Transformer):
        folder = find_model(model)
        tokenizer, model = tokenizer or Tokenizer.load(folder), load_model(folder)
    if tokenizer is None:
        raise ConfigError(
            "attention_maps: expected a tokenizer beside a model, got none; give a folder, or tokenizer=…"
        )
    ids, said = ids_of(model, tokenizer, text, target)
    longest = max(len(ids), len(said or ()))
    if max_tokens is not None and longest > max_tokens:
        raise ConfigError(f"text: expected at most {max_tokens} tokens, got {longest}; shorten it, or raise max_tokens")
    return of_ids(model, ids, said, tokenizer)


def ids_of(
    model: Transformer, tokenizer: Tokenizer, text: str, target: str | None
) -> tuple[Sequence[int], Sequence[int] | None]:
    """The ids of a text with the special tokens that the model wants, and those of what its decoder has said."""
    config, bos = model.config, tokenizer.bos_id
    both = config.decoder is not None and config.encoder is not None
    if target is not None and not both:
        raise ConfigError("target: expected an encoder-decoder for it, got a model with one stack; leave it out")
    plain = tokenizer.encode(text)
    if config.encoder is None:
        start = () if bos is None or bos in plain[:1] else (bos,)
        return (*start, *plain), None
    if not both:
        return tokenizer.frame(plain).ids, None
    starts = config.special_ids.get("start", config.special_ids.get("pad", bos))
    ids = tokenizer.encode(target or "")
    said = framed(tokenizer, ids)  # as in training, where nothing is read after the last special token
    said = said[:-1] if len(said) > len(ids) else said
    return framed(tokenizer, plain), (() if starts is None else (starts,)) + said


def of_ids(model: Transformer, ids: Sequence[int], said: Sequence[int] | None, tokenizer: Tokenizer) -> AttentionMaps:
    """The attention over token ids; `said` are those of an encoder-decoder's decoder."""
    if not ids or said is not None and not said:
        raise ConfigError("text: expected at least one token, got none")
    too_high = max((*ids, *(said or ()))) >= model.config.vocab_size
    if too_high:
        raise ConfigError("tokenizer: expected ids of the model's vocabulary, got a higher one; another model's?")
    device = model.embedding.weight.device
    first = one_document(torch.tensor([list(ids)], device=device))
    last = first if said is None else one_document(torch.tensor([list(said)], device=device))
    maps = batch_maps(model, last, OneDocument(), None if said is None else (first, OneDocument()))
    arrays = {name: np.stack([layer[0] for layer in layers]) for name, layers in maps.items()}
    names = [[shown(tokenizer, token) for token in part] for part in (ids, said or ())]
    tokens, source = (names[0], []) if said is None else (names[1], names[0])
    return AttentionMaps(tokens, source, **arrays)


def shown(tokenizer: Tokenizer, token_id: int) -> str:
    if tokenizer.is_special(token_id):
        return tokenizer.token_of(token_id)
    return tokenizer.token_bytes(token_id).decode("utf-8", "replace")


def batch_maps(model: Transformer, tokens: Tokens, layout: Layout, source: Source | None = None) -> Maps:
    """The maps of a batch: "encoder", "decoder" and "cross", a list of float32 [B, H, T, S], one a layer. Rows of
    padding are zeros."""
    if isinstance(layout, Packed):
        raise ConfigError("attention maps: expected one document a row, got packed rows")
    maps: Maps = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        return lambda weights: maps.setdefault(name, []).append(weights.float().cpu().numpy())

    with torch.inference_mode(), watching(model, keep):
        model.hidden(tokens, layout, source=source)
    return maps


@contextmanager
def watching(model: Transformer, keep: Callable[[str], Callable[[Tensor], None]]) -> Iterator[None]:
    """Hooks before every attention module: each computes the module's weights from what the module is given."""
    handles: list[RemovableHandle] = []

    def watch(module: nn.Module, weights: Callable[..., Tensor], take: Callable[[Tensor], None]) -> None:
        def hook(owner: Any, given: tuple[Any, ...]) -> None:
            take(weights(owner, given[0], given[1]))

        handles.append(module.register_forward_pre_hook(hook))

    for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        for block in stack.blocks() if stack is not None else ():
            watch(block.attention, self_weights, keep(name))
            if block.cross is not None:
                watch(block.cross, cross_weights, keep("cross"))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def self_weights(module: Attention, x: Tensor, context: Context) -> Tensor:
    """[B, H, T, T]."""
    tokens, sight = context.tokens, module.sight
    if module.projection is not None:
        raise ConfigError(
            "attention maps: Linformer attends to mixtures of tokens, so it has no weights between tokens"
        )
    seen = visible(tokens, tokens, sight)
    q, k, _ = module.project(x, context, module.qkv)
    if isinstance(module.config, Kernelised):
        return shares(q, k, seen)
    bias = counted(module.bias(context), tokens, sight)
    weights = probabilities(q, k, seen, sight, None if bias is None else bias(q, k, 0, 0))
    if module.global_qkv is None or tokens.kind is None:
        return weights
    everything = Sight(sight.scale, causal=False)
    q, k, _ = module.project(x, context, module.global_qkv)
    whole = probabilities(q, k, visible(tokens, tokens, everything), everything, None)
    return torch.where((kinds(tokens) == GLOBAL)[:, None, :, None], whole, weights)


def cross_weights(module: CrossAttention, x: Tensor, context: Context) -> Tensor:
    """[B, H, T, S]."""
    assert context.source is not None and context.source_tokens is not None
    config = module.config
    q = module.q(x).unflatten(-1, (config.n_heads, config.head_channels))
    k = module.kv(context.source).unflatten(-1, (-1, config.head_channels))[:, :, : config.n_kv_heads]
    return probabilities(q, k, visible(context.tokens, context.source_tokens[0], module.sight), module.sight, None)
