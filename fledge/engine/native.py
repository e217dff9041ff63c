"""A decoder on the compiled kernels: its layers as the structs that fledge/nn/native/step.h reads, one call a step.

What the kernels don't know (encoders, patterns, linear attention, …) has no native form: `why_not`
says so, and torch computes it.
"""

from __future__ import annotations

import ctypes as c
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fledge.engine.row import Row
from fledge.errors import ConfigError
from fledge.model.transformer import Transformer
from fledge.nn.adapter import Adapter
from fledge.nn.attention import Attention
from fledge.nn.bias import AlibiBias
from fledge.nn.block import Block, Stack
from fledge.nn.config import Alibi, Heads, LayerConfig, Moe, Rope
from fledge.nn.feedforward import Experts, FeedForward
from fledge.nn.native import library as native
from fledge.nn.native.linear import NativeLinear, PanelEmbedding, threads
from fledge.nn.norm import HeadNorms, LayerNorm, RMSNorm, scale_of
from fledge.nn.position import sines
from fledge.nn.quantized import Int4Linear, Int8Linear
from fledge.tune.changes import Change

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "quick_gelu", "tanh")
PARALLEL = ("", "one_norm", "two_norms")
NORM_OVER = {"": 0, "head": 0, "whole": 1, "own": 2}
ROUTER = "ffn.router"


def why_not(model: Transformer) -> str:
    """Why the kernels can't compute a model; empty: they can."""
    config = model.config
    if native.library() is None:
        return "the kernels aren't built"
    if model.embedding.weight.device.type != "cpu" or model.embedding.weight.dtype != torch.float32:
        return "the kernels are for float32 on a CPU"
    if config.encoder is not None or config.decoder is None:
        return "the kernels are for decoders alone"
    stack = config.decoder
    if not stack.causal or stack.cross is not None or stack.conv is not None or stack.inputs.kinds:
        return "the kernels know causal decoders without cross-attention, convolution and token kinds"
    if stack.inputs.width or config.transform is not None or stack.norm.kind == "batch":
        return "the kernels know neither embeddings of another width, nor an output transform, nor batch norm"
    if any(isinstance(module, Adapter) for module in model.modules()):
        return "the kernels know no adapters beside the weights"
    if any(isinstance(module, Int8Linear | Int4Linear) for module in model.modules()):
        return "the kernels know maps that are quantized alike where they stand side by side"
    return next(filter(None, map(layer_reason, stack.layers)), "")


def layer_reason(layer: LayerConfig) -> str:
    if type(layer.mixer) is not Heads or layer.mixer.global_maps or layer.pattern is not None:
        return "the kernels know plain heads alone"
    position = layer.position
    if position is None or isinstance(position, Rope) or (isinstance(position, Alibi) and not position.coarse):
        return ""
    return "the kernels know rotary positions and ALiBi"


class NativeDecoder:
    """`model`, packed, with a cache's tensors. Holds on to all tensors whose addresses the structs carry.

    `caches`: per layer keys and values [K, P, C], float32, or int8 with scales [K, P]. The kernels write a block's keys
    side by side, as [K, P / 16, C, 16] in the same memory: what they wrote is theirs alone to read.
    """

    def __init__(self, model: Transformer, caches: Sequence[tuple[Tensor, ...]], context_tokens: int):
        stack = model.decoder
        assert isinstance(stack, Stack)
        self.kept: list[object] = [model, list(caches)]
        self.vocab_size, self.model = model.config.tokens or model.config.vocab_size, model
        self.adapters: dict[str, NativeAdapter] = {}
        self.angles = model.angle_tables(stack.config, torch.device("cpu"), context_tokens, context_tokens)
        blocks = [(stack.layers[block], stack.config.layers[n]) for n, block in enumerate(stack.config.block_of_layer)]
        layers = (native.Layer * len(blocks))()
        for n, (block, layer) in enumerate(blocks):
            assert isinstance(block, Block)
            self.fill_layer(layers[n], stack, block, layer, caches[n])
        self.decoder = self.whole(stack, layers, context_tokens)

    def keep(self, t: Tensor | None) -> int | None:
        """The address of a tensor, which lives from now on as long as this."""
        if t is None:
            return None
        t = t.detach().to(torch.float32).contiguous()
        self.kept.append(t)
        return t.data_ptr()

    def norm(self, module: nn.Module | None) -> native.Norm:
        if module is None:
            return native.Norm()
        if isinstance(module, HeadNorms):
            found = self.norm(module.plain)
            return native.Norm(found.kind, found.eps, self.keep(module.weights() if len(module.heads) else None), None)
        assert isinstance(module, RMSNorm | LayerNorm)
        weight = self.keep(scale_of(module.weight, module.offset))
        bias = module.bias if isinstance(module, LayerNorm) else None
        return native.Norm(2 if isinstance(module, LayerNorm) else 1, module.eps, weight, self.keep(bias))

    def matrix(self, module: nn.Module | None) -> native.Matrix:
        assert isinstance(module, NativeLinear)
        self.kept.append(module)
        return module.matrix

    def fill_layer(
        self, out: native.Layer, stack: Stack, block: Block, layer: LayerConfig, cache: tuple[Tensor, ...]
    ) -> None:
        attention, ffn, heads = block.attention, block.ffn, layer.mixer
        assert isinstance(attention, Attention) and isinstance(ffn, FeedForward | Experts)
        for part, norms in (("attention", block.attention_norms), ("ffn", block.ffn_norms)):
            for slot, norm in norms.items():
                setattr(out, f"{part}_{slot}", self.norm(norm))
        out.q_norm, out.k_norm = self.norm(attention.q_norm), self.norm(attention.k_norm)
        out.norm_over = NORM_OVER[heads.qk_norm]
        if isinstance(layer.position, Rope):
            cos, sin = self.angles[layer.position]
            out.turned, out.cos, out.sin = 2 * cos.shape[1], self.keep(cos), self.keep(sin)
        slopes = self.keep(torch.tensor(stack.bias.slopes)) if isinstance(stack.bias, AlibiBias) else None
        scale = 1.0 / math.sqrt(heads.head_channels) if heads.scale is None else heads.scale
        out.heads = native.Heads(
            heads.n_heads, heads.n_kv_heads, heads.head_channels, layer.window or 0, scale, heads.softcap or 0.0, slopes
        )
        addresses = [t.data_ptr() for t in cache] + [None] * (4 - len(cache))
        out.cache = native.Cache(*addresses, cache[0].shape[1])
        out.qkv, out.out = self.matrix(attention.qkv), self.matrix(attention.out)
        if isinstance(ffn, Experts):
            out.up, out.mixture = self.matrix(ffn.router), self.mixture(ffn)
        else:
            out.up, out.down = self.matrix(ffn.inward), self.matrix(ffn.down)
        out.activation, out.gated = ACTIVATIONS.index(layer.dense.activation), layer.dense.gated
        out.parallel, out.clip = PARALLEL.index(block.parallel), heads.clip or 0.0

    def mixture(self, ffn: Experts) -> native.Mixture:
        experts = (native.Expert * ffn.config.n_experts)()
        for out, expert in zip(experts, ffn.experts, strict=True):
            assert isinstance(expert, FeedForward)
            out.up, out.down = self.matrix(expert.inward), self.matrix(expert.down)
        self.kept.append(experts)
        return native.Mixture(experts, ffn.config.n_experts, ffn.config.top_k, ffn.config.renormalise)

    def whole(self, stack: Stack, layers: c.Array[native.Layer], context_tokens: int) -> native.Decoder:
        model, inputs = self.model, stack.config.inputs
        table = None
        if inputs.positions == "learned" and stack.inputs.positions is not None:
            table = stack.inputs.positions.weight
        if inputs.positions == "sinusoidal":
            table = sines(torch.arange(context_tokens + inputs.offset), stack.config.width)
        embedding: nn.Module = model.embedding
        panels = isinstance(embedding, PanelEmbedding)
        rows = model.embedding.weight  # of the panels, if it lies in panels
        output = self.matrix(model.output)
        output.n_outputs = self.vocab_size
        if model.output_bias is not None:
            output.bias = self.keep(model.output_bias)
        scale = float(torch.tensor(inputs.scale, dtype=torch.float32))
        return native.Decoder(
            stack.config.width, len(layers), 0, self.vocab_size, layers, self.keep(rows), self.keep(table),
            panels, inputs.offset, scale, model.config.logit_scale, model.config.logit_softcap or 0.0, 0.0,
            self.norm(stack.inputs.norm), self.norm(stack.norm), output,
        )  # fmt: skip

    def add_adapter(
        self, key: str, changes: Mapping[str, Sequence[Change]], embedding: tuple[Tensor, Tensor] | None
    ) -> None:
        """Rows that name `key` go through these changes, by the paths of the packed maps, from now on. Raises
        ConfigError for those of a map that the kernels have none of, and for what a router reads."""
        paths = self.map_paths()
        unknown = next((path for path in changes if path not in paths), None)
        if unknown is not None:
            raise ConfigError(f"adapter: expected maps that the kernels know, got a change of {unknown}")
        for path, here in changes.items():
            if path.endswith(ROUTER) and any(change.before is not None for change in here):
                raise ConfigError(f"adapter: expected a change of what {path} gives, got one of what it reads")
        self.adapters[key] = NativeAdapter([changes.get(path, ()) for path in paths], embedding)

    def map_paths(self) -> list[str]:
        """The packed maps in the order of an adapter's structs: four a layer, then the output."""
        stack = self.model.decoder
        assert isinstance(stack, Stack)
        paths = []
        for n, block in enumerate(stack.config.block_of_layer):
            inward = ROUTER if isinstance(stack.config.layers[n].ffn, Moe) else "ffn.inward"
            for name in ("attention.qkv", "attention.out", inward, "ffn.down"):
                paths.append(f"decoder.layers.{block}.{name}")
        return [*paths, "output"]

    def forward(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Logits [k, V] of each row: of its last token, or with `all_logits` of every token."""
        ids = np.array([token for row in rows for token in row.ids], np.int32)
        positions = np.array([row.start + n for row in rows for n in range(len(row.ids))], np.int32)
        tables: list[np.ndarray] = []
        wanted: list[int] = []
        adapters: list[int] = []
        ends = [0]
        for row in rows:
            tables += [np.array(row.blocks, np.int32)] * len(row.ids)
            adapters += [self.adapters[row.adapter].address if row.adapter else 0] * len(row.ids)
            wanted += range(len(tables) - (len(row.ids) if row.all_logits else 1), len(tables))
            ends.append(len(wanted))
        beside = np.array(adapters, np.uint64) if any(adapters) else None
        logits = self.step(ids, positions, tables, np.array(wanted, np.int32), beside)
        return [logits[begin:end] for begin, end in zip(ends, ends[1:], strict=False)]

    def step(
        self,
        ids: np.ndarray,
        positions: np.ndarray,
        tables: list[np.ndarray],
        wanted: np.ndarray,
        adapters: np.ndarray | None = None,
    ) -> np.ndarray:
        """Logits [wanted, V] of M new tokens: int32 ids and positions [M], each token's table of blocks (int32, long
        enough for its position), the tokens whose logits are asked for, int32, and each token's adapter by its address,
        uint64, 0 for none."""
        logits = np.empty((len(wanted), self.vocab_size), np.float32)
        addresses = np.array([table.ctypes.data for table in tables], np.uint64)
        arrays = (ids, positions, addresses, wanted, logits)
        given = native.Step(len(ids), len(wanted), *(a.ctypes.data for a in arrays))
        given.adapters = None if adapters is None else adapters.ctypes.data
        run = threads(torch.get_num_threads())
        if run.kernels.fledge_step(run.pointer, c.byref(self.decoder), c.byref(given)):
            raise MemoryError(f"a step of {len(ids)} tokens: expected memory for them, got none")
        return logits


class NativeAdapter:
    """An adapter as the struct that the kernels read: the changes of each map of each layer, and of the output."""

    def __init__(self, changes: Sequence[Sequence[Change]], embedding: tuple[Tensor, Tensor] | None):
        self.kept: list[object] = [changes, embedding]  # whose memory the structs point to
        maps = (native.Changes * len(changes))()
        for out, here in zip(maps, changes, strict=True):
            out.n = len(here)
            if here:
                structs = (native.Change * len(here))(*map(change_struct, here))
                self.kept.append(structs)
                out.first = structs
        rows, up = embedding or (None, None)
        pointers = (None if t is None else t.data_ptr() for t in (rows, up))
        self.adapter = native.Adapter(maps, *pointers, 0 if rows is None else rows.shape[1])
        self.kept.append(maps)

    @property
    def address(self) -> int:
        return c.addressof(self.adapter)


def change_struct(change: Change) -> native.Change:
    tensors = (change.before, change.down, change.up, change.factor, change.offset)
    rank = 0 if change.down is None else change.down.shape[0]
    return native.Change(change.begin, change.size, rank, 0, *(None if t is None else t.data_ptr() for t in tensors))
