"""The runner: forward passes for the scheduler, over blocks of cache, on weights packed for inference.

V vocabulary. A row is one document's next tokens; decoding rows (one token) go together, prefills one by one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fledge.batch import Cached, Tokens
from fledge.engine.adapters import Adapters
from fledge.engine.config import CacheDtype, EngineConfig
from fledge.engine.native import NativeDecoder, why_not
from fledge.engine.row import Row, copies
from fledge.errors import CheckpointError, ConfigError
from fledge.model.start import start_id
from fledge.model.stretch import reach, stretch
from fledge.model.transformer import Transformer, new_cache, window_of
from fledge.nn.adapter import Adapter
from fledge.nn.cache import BLOCK_TOKENS, KeyValueCache
from fledge.nn.config import Kernelised
from fledge.nn.linear import Joined, Linear, PackedLinear, native, pack
from fledge.nn.native.library import build_in_background
from fledge.nn.native.linear import NativeLinear, PanelEmbedding, Place, float_linear
from fledge.nn.quantized import Int4Linear, Int8Linear
from fledge.parallel.stages import Elsewhere
from fledge.parallel.tensor import PackedRows, RowLinear
from fledge.text.tokenizer import Tokenizer
from fledge.tune.changes import Changes, changes_of
from fledge.tune.folder import is_adapter
from fledge.tune.load import find_served, load_served, served_stop_ids, served_tokenizer


class Runner:
    """A model with a cache for `n_slots` documents side by side of up to `context_tokens` tokens each.

    `cache_tokens`: all tokens that the cache holds; 0: whole contexts for all slots, or what memory allows (see
    `new_cache`). `cache_dtype` is the model's own or int8. `reach_tokens`: of a model with a window (`reach`), the
    longest document of a request that goes on past `context_tokens`; 0: none may. `folder`: the model folder that it
    was read from, beside whose weights adapters may stand. `model` is packed in place and belongs to the runner from
    then on; give `copied(model)` to keep yours.
    """

    def __init__(
        self,
        model: Transformer,
        n_slots: int = 8,
        context_tokens: int = 0,
        cache_tokens: int = 0,
        cache_dtype: CacheDtype = "float32",
        reach_tokens: int = 0,
        folder: Path | None = None,
    ):
        refuse_encoders(model)
        longest = model.document_tokens
        if not 0 <= context_tokens <= longest:
            raise ConfigError(f"context_tokens: expected at most the model's {longest}, got {context_tokens}")
        self.n_slots, self.context_tokens = n_slots, context_tokens or longest
        self.vocab_size = model.config.vocab_size
        self.model = pack_in_place(model.eval())
        self.device = model.embedding.weight.device
        self.reach_tokens, longest = reach_tokens, reach_tokens or self.context_tokens
        self.cache = self.new_cache(longest, cache_tokens, cache_dtype == "int8")
        self.n_blocks, self.block_tokens, self.window = self.cache.n_blocks, BLOCK_TOKENS, window_of(model)
        self.shares = not any(isinstance(layer.mixer, Kernelised) for layer in model.config.stack.layers)
        both = model.encoder is not None
        self.source_tokens, self.start_id = (
            (self.model.config.context_tokens, start_id(model.config)) if both else (0, 0)
        )
        self.folder, self.compiled = folder, self.compile()
        self.adapters = Adapters(self.model, self.compiled)

    def new_cache(self, longest: int, cache_tokens: int, int8: bool) -> KeyValueCache:
        return new_cache(self.model, self.n_slots, longest, cache_tokens, int8)

    def compile(self) -> NativeDecoder | None:
        """The model on the compiled kernels, or None where they don't know it: torch then computes it."""
        self.why_torch = why_not(self.model)
        if self.why_torch:
            return None
        cache = self.cache
        each = zip(cache.keys, cache.values, cache.key_scales, cache.value_scales, strict=True)
        caches = [tuple(t for t in tensors if t is not None) for tensors in each]
        with torch.inference_mode():
            return NativeDecoder(self.model, caches, self.reach_tokens or self.context_tokens)

    def forward(self, rows: list[Row]) -> Sequence[Tensor | np.ndarray]:
        """float32 logits [k, V] a row: k is 1 (the last token) or, with `all_logits`, every token."""
        if self.compiled is None:
            return self.torch_forward(rows)
        self.cache.copy(copies(rows))
        return self.compiled.forward(rows)

    @torch.inference_mode()
    def torch_forward(self, rows: list[Row]) -> list[Tensor]:
        """As `forward`, by the transformer itself."""
        self.cache.copy(copies(rows))
        results: list[Tensor | None] = [None] * len(rows)
        for adapter in dict.fromkeys(row.adapter for row in rows):
            numbers = [i for i, row in enumerate(rows) if row.adapter == adapter]
            with self.adapters.chosen(adapter):
                for i, logits in zip(numbers, self.logits_beside([rows[i] for i in numbers]), strict=True):
                    results[i] = logits
        return results  # type: ignore[return-value]

    def logits_beside(self, rows: list[Row]) -> list[Tensor]:
        """Of rows with one adapter, the chosen one."""
        if self.source_tokens:
            self.read_sources(rows)
        results: list[Tensor | None] = [None] * len(rows)
        single = [i for i, row in enumerate(rows) if len(row.ids) == 1]
        if single:
            logits = self.logits([rows[i] for i in single], last_only=False)
            for b, i in enumerate(single):
                results[i] = logits[b]
        for i, row in enumerate(rows):
            if len(row.ids) > 1:
                results[i] = self.logits([row], last_only=not row.all_logits)[0]
        return results  # type: ignore[return-value]

    def logits(self, rows: list[Row], last_only: bool) -> Tensor:
        """Rows of equal length in one pass: [B, T or 1, V]."""
        tokens, layout = self.pass_of(rows)
        return self.told_by(self.model.hidden(tokens, layout, self.cache), last_only)

    def told_by(self, hidden: Tensor, last_only: bool) -> Tensor:
        """The logits that the last layer's output [B, T, D] leads to."""
        return self.model.logits(hidden[:, -1:] if last_only else hidden).float()

    def pass_of(self, rows: list[Row]) -> tuple[Tokens, Cached]:
        """What the model is given of rows of equal length."""
        ids = torch.tensor([row.ids for row in rows], device=self.device)
        length = ids.shape[1]
        starts = tuple(row.start for row in rows)
        pos = torch.tensor(starts, device=self.device)[:, None] + torch.arange(length, device=self.device)
        tables, sequences = tuple(row.blocks for row in rows), tuple(row.sequence for row in rows)
        sources = tuple(row.source.name for row in rows if row.source is not None)
        layout = Cached(tables, starts, (length,) * len(rows), sequences, sources)
        return Tokens(ids, pos, torch.zeros_like(ids)), layout

    def read_sources(self, rows: list[Row]) -> None:
        """Have the cache keep every source that these rows read; one by one, so that none depends on its company."""
        for row in rows:
            if row.source is not None and row.source.name not in self.cache.sources:
                self.model.keep_source(self.cache, row.source.name, torch.tensor(row.source.ids, device=self.device))

    def forget(self, source_name: bytes) -> None:
        """Keep nothing more of a source."""
        self.cache.sources.pop(source_name, None)

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Other weights of the same shapes, by the names of the model's own `state_dict()`, into every packed copy, in
        place. What the cache holds is of the old ones. Raises CheckpointError, and then nothing has changed."""
        places = weight_places(self.model)
        if self.adapters.known:
            raise CheckpointError("weights: expected no adapters beside them, got some; unload those first")
        for name in [*places, *state]:
            got = tuple(state[name].shape) if name in state else "none"
            expected = tuple(places[name].shape) if name in places else "none"
            if got != expected:
                raise CheckpointError(
                    f"weights: expected {expected} as {name}, got {got}; give the same model's weights"
                )
        with torch.no_grad():
            for name, place in places.items():
                place.copy_(state[name])
        self.cache.clear()
        self.compiled = self.compile()  # which holds copies of some small ones
        self.adapters.decoder = self.compiled

    def read_adapter(self, folder: str) -> Changes:
        """What an adapter's folder changes of this model. Raises ConfigError and CheckpointError (see `changes_of`)."""
        if self.folder is None:
            raise ConfigError("adapters: expected a base that is a model folder, got one that has an adapter already")
        return changes_of(folder, self.folder, self.device)

    def add_adapter(self, key: str, changes: Changes) -> None:
        self.adapters.add(key, changes)

    def remove_adapter(self, key: str) -> None:
        self.adapters.remove(key)


def weight_places(model: Transformer) -> dict[str, Place]:
    """Where each weight of a packed model lies, by its name before packing: a view of its packed copy."""
    places: dict[str, Place] = {}
    for path, module in model.named_modules():
        if isinstance(module, PackedLinear | NativeLinear | PanelEmbedding):
            places |= {f"{path}.{name}": place for name, place in module.places().items()}
        else:
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            lasting = [(name, place) for name, place in own if name not in module._non_persistent_buffers_set]
            places |= {f"{path}.{name}" if path else name: place.detach() for name, place in lasting}
    return places


def copied(model: Transformer) -> Transformer:
    """A copy to hand to a Runner while `model` goes on training."""
    return copy.deepcopy(model).requires_grad_(False)


def first_layers(model: Transformer, n: int) -> Transformer:
    """The model of its first `n` layers, its last norm and output behind them; all weights are shared. Raises
    ConfigError."""
    stack, config = model.decoder, model.config.decoder
    if stack is None or config is None or model.encoder is not None or not 0 < n < len(config.layers):
        most = 0 if config is None else len(config.layers) - 1
        raise ConfigError(f"layers: expected 1..{most} layers of a decoder, got {n}")
    fewer = replace(config, layers=config.layers[:n], shared=config.shared[:n])
    part, short = copy.copy(model), copy.copy(stack)
    part._modules, short._modules = dict(model._modules), dict(stack._modules)
    short.layers, short.config = nn.ModuleList(list(stack.layers)[: fewer.n_blocks]), fewer
    part.decoder, part.config = short, replace(model.config, decoder=fewer)
    return part


def pack_in_place(model: Transformer) -> Transformer:
    """Replace every linear by its packed copy, one at a time, so that a weight exists twice for a moment only."""
    compiled = native(model.embedding.weight)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            of_adapted_output = parent is model and name == "output" and model.output_adapter is not None
            if isinstance(child, RowLinear):
                setattr(parent, name, PackedRows(child))
            elif isinstance(child, Joined | Linear | Int8Linear | Int4Linear) and not (
                isinstance(parent, Joined | Adapter) or of_adapted_output
            ):
                setattr(parent, name, pack(child, compiled))
    if model.output is None and not isinstance(model.embedding, Elsewhere):
        tie(model)
    return model


def tie(model: Transformer) -> None:
    """Give a tied output its product, the matrix kept once: rows are looked up in the kernels' panels, or the product
    reads the embedding, transposed."""
    weight = model.embedding.weight.detach()
    if native(weight):
        model.output = float_linear(weight, None)
        model.embedding = PanelEmbedding(model.output)  # type: ignore[assignment]  # answers as one
    else:
        model.output = PackedLinear(weight.t(), None, {})


def refuse_encoders(model: Transformer) -> None:
    """Raises ConfigError for what writes nothing."""
    family = model.config.family
    if model.decoder is None:
        raise ConfigError(f"engine: expected a decoder, got {family}, an encoder; fledge fill and heads use those")
    if not model.config.lm:
        raise ConfigError(
            f"engine: expected a model that writes, got {family} without an output over the vocabulary; fledge predict "
            "and fledge serve answer with its head"
        )


def load_runner(folder: str | Path, config: EngineConfig | None = None) -> tuple[Runner, Tokenizer, frozenset[int]]:
    """Runner, tokenizer and stop ids of a model folder, an adapter folder or a run folder."""
    config = config or EngineConfig()
    if config.threads:
        torch.set_num_threads(config.threads)
    build_in_background()
    folder = find_served(folder)
    tokenizer = served_tokenizer(folder)
    model = load_served(folder)
    room = fitted(model, config)
    base = None if is_adapter(folder) else folder
    runner = Runner(model, config.n_slots, *room, config.cache_dtype, config.reach_tokens, base)
    return runner, tokenizer, served_stop_ids(folder, tokenizer)


def fitted(model: Transformer, config: EngineConfig) -> tuple[int, int]:
    """Have the model read texts as long as the config says, in place; (context_tokens, cache_tokens) of its runner.
    Raises ConfigError."""
    if config.rope_override is not None:
        stretch(model, *config.rope_override)
    if not config.reach_tokens:
        return config.context_tokens, config.cache_tokens
    context_tokens = config.context_tokens or model.config.context_tokens
    reach(model, config.window_tokens or context_tokens, config.reach_tokens)
    # nobody holds more than a window, the chunk that is read and the blocks at both ends
    cache_tokens = config.n_slots * (context_tokens + config.prefill_chunk + 2 * BLOCK_TOKENS)
    return context_tokens, config.cache_tokens or cache_tokens
