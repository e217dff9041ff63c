"""Prompt and prefix tuning on a built model: virtual tokens put before its documents, and their folders in and out.

A file has one tensor, `prompt_embeddings`: [P, E] of embeddings, or [P, L · 2 · K · C] of keys and values, layer by
layer the key and then the value, channels as transformers turns them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fledge.batch import Cached, OneDocument, Tokens, one_document
from fledge.errors import CheckpointError, ConfigError
from fledge.model.safetensors_file import SafetensorsFile, write_safetensors
from fledge.model.transformer import Transformer, new_cache
from fledge.nn.cache import blocks_of
from fledge.nn.config import Heads, Moe
from fledge.nn.virtual import Noted, PrefixTokens, PromptTokens, VirtualTokens
from fledge.tune.config import TuneConfig
from fledge.tune.heads import TASKS
from fledge.tune.peft_config import task_type_of
from fledge.tune.sites import sites

KINDS = {"prompt": "PROMPT_TUNING", "prefix": "PREFIX_TUNING"}
TENSOR = "prompt_embeddings"
TRAINED = "virtual_tokens.safetensors"


def place_before(model: Transformer, config: TuneConfig, seed: int, text_ids: Sequence[int] = ()) -> Transformer:
    """`model`, frozen, with new virtual tokens before its documents. Raises ConfigError for a model that can't have
    them, and for a text without tokens."""
    n_tokens = config.virtual_tokens
    check(model, n_tokens, config.method == "prefix")
    if any(isinstance(layer.ffn, Moe) and layer.ffn.balance for layer in model.config.stack.layers):
        raise ConfigError("tune.method: expected no load balance, which virtual tokens would count in; use lora")
    like = model.embedding.weight
    with torch.device("meta"):
        made = PromptTokens(n_tokens, like.shape[1]) if config.method == "prompt" else None
        virtual = made or PrefixTokens(n_tokens, shape_of_keys(model), config.projection)
    model.requires_grad_(False)
    put(model, virtual)
    if not like.is_meta:
        initialise(model, virtual, config, torch.Generator().manual_seed(seed), text_ids)
    return model


def check(model: Transformer, n_tokens: int, prefix: bool) -> None:
    """Raises ConfigError for what is no decoder or encoder alone whose layers have keys and values, for what mixes
    tokens elsewhere, and for a context that is too short."""
    config, stack = model.config, model.config.stack
    if len(config.stacks) > 1:
        raise ConfigError(
            f"tune.method: expected a decoder or an encoder alone for virtual tokens, got {config.family}, which has "
            "both; use lora"
        )
    for layer in stack.layers:
        if type(layer.mixer) is not Heads or layer.pattern is not None:
            raise ConfigError(
                "tune.method: expected layers that see their whole document or a window of it, got others: a pattern "
                "says nothing of virtual tokens; use lora"
            )
    if stack.norm.kind == "batch":
        raise ConfigError("tune.method: expected layer or rms norms, got batch, which virtual tokens would count in")
    if prefix and stack.conv is not None:
        raise ConfigError(
            "tune.method: expected attention alone to read a prefix, got a convolution beside it, which reads states "
            "that a prefix has none of; use prompt"
        )
    if n_tokens >= config.context_tokens:
        raise ConfigError(
            f"tune.virtual_tokens: expected fewer than the context of {config.context_tokens}, got {n_tokens}"
        )


def shape_of_keys(model: Transformer) -> tuple[int, int, int]:
    """Layers, key/value heads and channels of a stack. Raises ConfigError where layers differ."""
    stack = model.config.stack
    shapes = {(layer.mixer.n_kv_heads, layer.mixer.head_channels) for layer in stack.layers}
    if len(shapes) > 1:
        raise ConfigError(f"tune.method: expected layers with equal heads for prefix, got {sorted(shapes)}; use prompt")
    return (len(stack.layers), *shapes.pop())


def put(model: Transformer, virtual: VirtualTokens) -> None:
    """Stand virtual tokens before a model's documents, on its device and of its type; they have no values yet."""
    like = model.embedding.weight
    for module in virtual.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            empty = torch.empty(parameter.shape, device=like.device, dtype=like.dtype)
            setattr(module, name, nn.Parameter(empty))
    model.virtual = virtual.train(model.training)


@torch.no_grad()
def initialise(
    model: Transformer, virtual: VirtualTokens, config: TuneConfig, generator: torch.Generator, text_ids: Sequence[int]
) -> None:
    """As PEFT begins: rows normal, or of a prompt those of random tokens or of a text's, over and over until they are
    enough; a projection's maps as `nn.Linear` draws them. A prefix can also begin as what the layers make of such
    tokens (Li & Liang 2021, §7.4)."""
    assert isinstance(virtual, PromptTokens | PrefixTokens)
    n_tokens, device = virtual.n_tokens, model.embedding.weight.device
    if config.init == "random":
        drawn = torch.empty(virtual.rows.shape).normal_(generator=generator)
        virtual.rows.copy_(drawn / scale_of(model) if isinstance(virtual, PromptTokens) else drawn)
    else:
        if config.init == "vocabulary":
            n_rows = model.config.tokens or model.config.vocab_size
            ids = torch.randint(n_rows, (n_tokens,), generator=generator).to(device)
        elif text_ids:
            ids = torch.tensor((list(text_ids) * -(-n_tokens // len(text_ids)))[:n_tokens], device=device)
        else:
            raise ConfigError("tune.init_text: expected a text with tokens, got none; say what the answers are about")
        is_prompt = isinstance(virtual, PromptTokens)
        virtual.rows.copy_(model.embedding.weight[ids] if is_prompt else keys_and_values_of(model, ids))
    for linear in (part for part in virtual.modules() if isinstance(part, nn.Linear)):
        bound = 1 / math.sqrt(linear.in_features)
        for parameter in (linear.weight, linear.bias):
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


@torch.no_grad()
def keys_and_values_of(model: Transformer, ids: Tensor) -> Tensor:
    """What each layer makes of a document of tokens int64 [P]: rows [P, L · 2 · K · C]."""
    stack = model.encoder if model.decoder is None else model.decoder
    assert stack is not None
    tokens = one_document(ids[None])
    context = model.context(stack.config, tokens, OneDocument())
    noted = Noted(model.embedding.weight, torch.full_like(tokens.ids, -1))
    context.prefix = noted
    was_training = model.training
    stack.eval()(model.embed(tokens), context)
    stack.train(was_training)
    each = [noted.found[layer][:, 0] for layer in range(len(noted.found))]  # [2, P, K, C]
    return torch.stack(each).permute(2, 0, 1, 3, 4).flatten(1)


@torch.no_grad()
def settled(model: Transformer) -> Transformer:
    """`model` as it is served: what its layers make of virtual tokens, where it never changes, as keys and values.
    An encoder's prompt sees the document, so it stays as it is."""
    virtual = model.virtual
    if virtual is None:
        return model
    keys_and_values = virtual.keys_and_values()
    if keys_and_values is None and not model.config.stack.causal:
        return model
    if keys_and_values is None:
        model.virtual = None
        cache = new_cache(model, 1, virtual.n_tokens)
        ids = torch.zeros(1, virtual.n_tokens, dtype=torch.int64, device=model.embedding.weight.device)
        pos, rows = torch.arange(virtual.n_tokens, device=ids.device)[None], virtual.embeddings(0)[None]
        table = tuple(range(blocks_of(virtual.n_tokens)))
        model.hidden(Tokens(ids, pos, ids, embeds=rows), Cached((table,), (0,), (virtual.n_tokens,), (0,)), cache)
        each = [torch.stack(cache.read(n, table, 0, 0, virtual.n_tokens)) for n in range(len(cache.keys))]
        keys_and_values = torch.stack(each).transpose(2, 3)  # [L, 2, P, K, C]
    shape = (keys_and_values.shape[0], *keys_and_values.shape[3:])
    plain = PrefixTokens(virtual.n_tokens, shape)
    plain.rows = nn.Parameter(keys_and_values.permute(2, 0, 1, 3, 4).flatten(1).contiguous(), requires_grad=False)
    model.virtual = plain.eval()
    return model


@torch.no_grad()
def virtual_tensors(model: Transformer) -> dict[str, Tensor]:
    """What a file of adapters holds of a model's virtual tokens."""
    virtual = model.virtual
    if isinstance(virtual, PrefixTokens):
        return {TENSOR: turned(model, virtual.table().detach(), to_theirs=True)}
    assert isinstance(virtual, PromptTokens)
    return {TENSOR: virtual.rows.detach() * scale_of(model)}


def virtual_facts(model: Transformer) -> tuple[str, dict[str, Any]]:
    """PEFT's word for a model's virtual tokens, and its adapter_config.json's numbers."""
    virtual = model.virtual
    n_layers, heads, channels = shape_of_keys(model)
    facts: dict[str, Any] = {"num_transformer_submodules": 1, "num_layers": n_layers, "task_type": task_type(model)}
    if isinstance(virtual, PrefixTokens):
        hidden = None if virtual.inward is None else virtual.inward.out_features
        facts |= {"num_attention_heads": heads, "token_dim": heads * channels}
        facts |= {"encoder_hidden_size": hidden, "prefix_projection": hidden is not None}
        return KINDS["prefix"], {"num_virtual_tokens": virtual.n_tokens, **facts}
    assert isinstance(virtual, PromptTokens)
    stack = model.config.stack
    facts |= {"num_attention_heads": stack.layers[0].mixer.n_heads, "token_dim": virtual.rows.shape[1]}
    return KINDS["prompt"], {"num_virtual_tokens": virtual.n_tokens, **facts, "prompt_tuning_init": "RANDOM"}


def task_type(model: Transformer) -> str:
    """PEFT's word for the class that puts virtual tokens before this model's documents and answers as it does; where
    PEFT has none, a word that it refuses: others would ignore them, or read a head's numbers off a virtual token."""
    head = next((one.name for one in model.config.heads if one.name in TASKS), None)
    if head is None:
        return task_type_of(model.config) or "FEATURE_EXTRACTION"
    if head == "sequence" and isinstance(model.virtual, PromptTokens) and not model.config.stack.causal:
        return "SEQ_CLS_BEHIND_PROMPT"
    return {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "span": "QUESTION_ANS"}.get(head, "MULTIPLE_CHOICE")


def check_task(model: Transformer, raw: dict[str, Any]) -> None:
    """Raises ConfigError for a prompt of PEFT's whose head reads an encoder's first virtual token."""
    reads_virtual = raw["peft_type"] == KINDS["prompt"] and raw.get("task_type") == "SEQ_CLS"
    if reads_virtual and not model.config.stack.causal:
        raise ConfigError(
            "adapter_config.json: task_type: expected a head that reads the own first token behind a prompt, got "
            "SEQ_CLS, whose head reads the first virtual one in PEFT; train it with fledge finetune, or as a prefix"
        )


def attach_virtual(model: Transformer, kind: str, n_tokens: int, tensors: Mapping[str, Tensor]) -> Transformer:
    """Put a file's virtual tokens before a model's documents. Raises ConfigError and CheckpointError."""
    prefix = kind == KINDS["prefix"]
    check(model, n_tokens, prefix)
    with torch.device("meta"):
        width = model.embedding.weight.shape[1]
        virtual = PrefixTokens(n_tokens, shape_of_keys(model)) if prefix else PromptTokens(n_tokens, width)
    found = tensors.get(TENSOR)
    wanted, got = [*virtual.rows.shape], {name[:40]: [*tensor.shape] for name, tensor in list(tensors.items())[:3]}
    if len(tensors) != 1 or found is None or [*found.shape] != wanted:
        raise CheckpointError(f"adapter: expected {TENSOR} {wanted} alone, got {got}; it is of another base or config")
    if not found.is_floating_point() or not math.isfinite(float(found.float().abs().sum())):
        raise CheckpointError(f"adapter: {TENSOR}: expected finite floating-point numbers, got others")
    model.requires_grad_(False)
    put(model, virtual)
    with torch.no_grad():
        virtual.rows.copy_(turned(model, found, to_theirs=False) if prefix else found / scale_of(model))
    return model.requires_grad_(False)


def scale_of(model: Transformer) -> float:
    """What embeddings are multiplied by behind the table here, and in the table's own look-up there (Gemma); an
    encoder (BigBird) does so behind it there too."""
    return 1.0 if model.config.decoder is None else model.config.decoder.inputs.scale


def turned(model: Transformer, rows: Tensor, to_theirs: bool) -> Tensor:
    """Keys of [P, L · 2 · K · C] with their channels in transformers' order, or back: it turns pairs of neighbours in
    some families, where pairs lie half a head apart here."""
    n_layers, heads, channels = shape_of_keys(model)
    whole = rows.clone().view(rows.shape[0], n_layers, 2, heads * channels)
    for site in sites(model).values():
        path, _, last = site.path.rpartition(".")
        if site.row.how == "pairs" and last == "k" and path.endswith("attention.qkv"):
            move = site.rows_to_theirs if to_theirs else site.rows_to_ours
            layer = int(path.split(".")[2])
            whole[:, layer, 0] = move(whole[:, layer, 0].t().contiguous()).t()
    return whole.flatten(1)


def has_own_file(model: Transformer) -> bool:
    """Whether PEFT's file holds something else than the numbers that are trained."""
    virtual = model.virtual
    projected = isinstance(virtual, PrefixTokens) and virtual.inward is not None
    return projected or (isinstance(virtual, PromptTokens) and scale_of(model) != 1.0)


def write_trained(model: Transformer, folder: Path) -> None:
    """The numbers that are trained, to go on with, where PEFT's file holds what comes of them alone."""
    if has_own_file(model):
        assert model.virtual is not None
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.virtual.state_dict().items()}
        write_safetensors(folder / TRAINED, state)


@torch.no_grad()
def fill_virtual(model: Transformer, folder: Path, tensors: Mapping[str, Tensor]) -> Transformer:
    """Give a model's virtual tokens the values of a checkpoint of equal ones. Raises CheckpointError for others."""
    virtual = model.virtual
    assert isinstance(virtual, PromptTokens | PrefixTokens)
    if has_own_file(model):
        with SafetensorsFile(folder / TRAINED) as file:
            found = {name: file.read(name) for name in file.entries}
    else:
        found = {"rows": tensors[TENSOR]} if TENSOR in tensors else {}
    own = dict(virtual.named_parameters())
    wanted, got = ({name: [*t.shape] for name, t in one.items()} for one in (own, found))
    if wanted != got:
        raise CheckpointError(f"adapter: expected virtual tokens of {wanted}, got {got}; use another run.dir")
    if isinstance(virtual, PrefixTokens) and not has_own_file(model):
        found = {"rows": turned(model, found["rows"], to_theirs=False)}
    for name, parameter in own.items():
        parameter.copy_(found[name])
    return model
