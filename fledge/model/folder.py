"""Model folders: Hugging Face's config.json and safetensors, in and out.

Loading checks config and every header before it allocates, then reads one tensor at a time: peak memory is the weights
plus the largest tensor. Pickle is never opened.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fledge.config import read_json
from fledge.errors import CheckpointError, ConfigError
from fledge.lineage import write_card, write_text_durably
from fledge.model.config import ModelConfig
from fledge.model.copies import as_stored, check_copy
from fledge.model.families import FAMILIES, family
from fledge.model.families.family import Family, Weight, token_ids
from fledge.model.families.task import label_keys, task_of_config
from fledge.model.generation import GENERATION, MAX_CONFIG_BYTES, START, generation_file, told_of_generating
from fledge.model.names import expanded, their_shape, to_ours, to_theirs
from fledge.model.quantization import read_quantization
from fledge.model.quantized_files import (
    StoredMatrix,
    as_plain,
    check_stored,
    install,
    quantization_of,
    quantized_maps,
    read_maps,
    state_of,
    stored_matrices,
)
from fledge.model.resize import unpadded
from fledge.model.safetensors_file import SafetensorsFile, write_safetensors
from fledge.model.safetensors_header import Entry
from fledge.model.spelling import (
    as_spelled,
    canonical_name,
    name_of_today,
    names_of_other_tasks,
    prefix_in_files,
    without_absent_output,
    without_absent_pooler,
)
from fledge.model.start import start_id
from fledge.model.transformer import Transformer, build
from fledge.model.weight_files import INDEX, WEIGHTS, is_pickle, opened, pickled, refuse_pickle
from fledge.nn.adapter import Adapter
from fledge.text.chat import chat_renderer
from fledge.text.tokenizer import Tokenizer

SHARD_BYTES = 5_000_000_000


def find_model(path: str | Path) -> Path:
    """The model folder at `path`: itself, or the `model/` of a run folder. Raises CheckpointError if there is none."""
    path = Path(path)
    for candidate in (path, path / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    if not path.exists():
        raise CheckpointError(f"{path}: expected a model folder, found nothing; check the path")
    if path.is_file():
        if is_pickle(path):
            raise pickled(path)
        remedy = "fledge convert makes one of a .gguf or a llama2.c .bin file"
        remedy = "give the folder that it is in" if path.suffix == ".safetensors" else remedy
        raise CheckpointError(f"{path}: expected a model folder, got a file; {remedy}")
    refuse_pickle(path)
    if any((folder / "adapter_config.json").is_file() for folder in (path, path / "model")):
        raise CheckpointError(
            f"{path}: expected a model folder, got an adapter's, which has no weights of its own; fledge merge BASE "
            "ADAPTER --out FOLDER makes a model of the two"
        )
    if (path / WEIGHTS).is_file():
        raise CheckpointError(
            f"{path}: expected config.json beside {WEIGHTS}, found none; weights alone don't say what a model "
            f"computes, and only these architectures are known: {', '.join(f.model_type for f in FAMILIES.values())}"
        )
    if (path / "run.yaml").is_file():
        raise CheckpointError(
            f"{path}: expected a model folder, got a run that has not come to its end; the same command goes on"
        )
    raise CheckpointError(f"{path}: expected a model folder with config.json, found none; fledge convert makes one")


def read_config(folder: str | Path) -> tuple[Family, ModelConfig]:
    """Family and config of a model folder, validated before anything is allocated. Raises ConfigError."""
    return parse_config(config_of(folder))


def config_of(folder: str | Path) -> dict[str, Any]:
    """What config.json holds; the id that a decoder begins with may stand in generation_config.json instead. Raises
    ConfigError."""
    raw = read_json(Path(folder) / "config.json", MAX_CONFIG_BYTES, unique=True)
    if not isinstance(raw, dict):
        raise ConfigError(f"config.json: expected a mapping, got {type(raw).__name__}; download it again")
    if raw.get(START) is None and (start := (generation_file(folder) or {}).get(START)) is not None:
        return {**raw, START: start}
    return raw


def parse_config(raw: dict[str, Any]) -> tuple[Family, ModelConfig]:
    """Family and ModelConfig from a config.json's content. Code it names (auto_map and kin) is never looked at."""
    model_type = raw.get("model_type")
    read_quantization(raw)
    for candidate in FAMILIES.values():
        if candidate.model_type == model_type:
            return candidate, candidate.config_of(raw)
        if candidate.inside is not None and candidate.inside.model_type == model_type:
            return candidate, candidate.config_of(candidate.inside.text_config(raw))
    known = ", ".join(f.model_type for f in FAMILIES.values())
    raise ConfigError(f"config.json: model_type: expected one of {known}, got {str(model_type)[:40]!r}")


def load_model(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    states_alone: bool = False,
) -> Transformer:
    """The model of a folder (or run folder), its weights as `dtype` (None: the files' own) on `device`; quantized ones
    stay so. `states_alone`: no logits are asked of it, and a file may lack what makes them.

    Raises ConfigError for a bad config.json and CheckpointError for missing, damaged, unsafe or misshapen weights.
    """
    with ExitStack() as files:
        return read_weights(stored_in(find_model(folder), files, states_alone), torch.device(device), dtype)


@dataclass(frozen=True)
class Stored:
    """What a folder's files hold of the model of `config`, checked: `shapes` of our parameters, `rows` of the name
    table, `found`: each row's name in the files, `where` those are open, `packed`: rows that are quantized.
    `generation`: what the folder says of generating."""

    config: ModelConfig
    shapes: dict[str, tuple[int, ...]]
    rows: dict[str, Weight]
    found: dict[str, str]
    where: dict[str, SafetensorsFile]
    packed: dict[str, StoredMatrix]
    generation: dict[str, Any]

    def plain(self) -> dict[str, Weight]:
        """The rows that are numbers as they are."""
        return {name: weight for name, weight in self.rows.items() if name not in self.packed}


def stored_in(folder: Path, files: ExitStack, states_alone: bool = False) -> Stored:
    """What a folder holds; its files stay open until `files` closes. Raises ConfigError for a bad config.json and
    CheckpointError for missing, damaged, unsafe or misshapen weights; nothing has been allocated."""
    raw = config_of(folder)
    own_family, config = parse_config(raw)
    where = opened(folder, files)
    stored = stored_matrices(where, read_quantization(raw))
    where = as_plain(where, stored)
    own_family = as_spelled(own_family, config, set(where))
    config = without_absent_pooler(own_family, as_stored(own_family, config, where, set(stored)), where)
    config = without_absent_output(own_family, config, where) if states_alone else config
    table = {weight.theirs: weight for weight in expanded(own_family, config)}
    found = their_names(own_family, where, table, config)
    table = {name: weight for name, weight in table.items() if name in found or not weight.optional}
    missing = [name for name in table if name not in found]
    if missing:
        raise CheckpointError(f"weights: {len(missing)} missing, first {missing[0]!r}; the files don't fit config.json")
    model = build(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    packed = {name: stored[found[name]] for name in table if found[name] in stored}
    for name, matrix in packed.items():
        check_stored(matrix, table[name], model, shapes)
    kept = Stored(config, shapes, table, found, where, packed, told_of_generating(generation_file(folder), raw))
    for name, weight in kept.plain().items():
        entry, expected = where[found[name]].entries[found[name]], their_shape(weight, shapes)
        if entry.shape != expected:
            raise CheckpointError(f"{name}: expected shape {list(expected)} by config.json, got {list(entry.shape)}")
        if not entry.dtype.is_floating_point:
            raise CheckpointError(f"{name}: expected floating-point weights, got {entry.dtype}")
    return kept


def read_weights(stored: Stored, device: torch.device, dtype: torch.dtype | None) -> Transformer:
    where, found, model = stored.where, stored.found, build(stored.config)
    plain = stored.plain()
    dtype = dtype or own_type([where[found[name]].entries[found[name]] for name in plain])
    for name, matrix in stored.packed.items():
        install(model, read_maps(matrix, stored.rows[name], stored.shapes), device)
    for name, weight in plain.items():
        tensor = where[found[name]].read(found[name]).to(device=device, dtype=dtype)
        for ours, value in to_ours(weight, tensor, stored.shapes).items():
            put_parameter(model, ours, value)
        del tensor
    unread = [name for name, parameter in model.named_parameters() if parameter.is_meta and device.type != "meta"]
    if unread:
        raise CheckpointError(f"weights: expected values for {unread[0]!r}, found none; download the folder again")
    model.generation = stored.generation
    return model.eval()


def own_type(entries: list[Entry]) -> torch.dtype:
    """The type that most values have: files keep some small tensors wider than the others."""
    counts: Counter[torch.dtype] = Counter()
    for entry in entries:
        counts[entry.dtype] += math.prod(entry.shape)
    return counts.most_common(1)[0][0]


def their_names(
    own_family: Family, where: dict[str, SafetensorsFile], table: dict[str, Weight], config: ModelConfig
) -> dict[str, str]:
    """Canonical name -> name in the files (its prefix may be missing). Raises CheckpointError for strangers."""
    wanted, required = set(table), {name for name, weight in table.items() if not weight.optional}
    found: dict[str, str] = {}
    copies: dict[str, str] = {}
    others: set[str] | None = None
    for name in where:
        canonical = canonical_name(own_family, config, name, wanted)
        if name in required:
            found[name] = name
        elif known := {name, canonical} & own_family.copies.keys():
            copies[name] = known.pop()
        elif canonical in wanted:
            found[canonical] = name
        elif name.endswith(own_family.ignored) or own_family.inside and name.startswith(own_family.inside.others):
            continue
        elif not (config.tie and name == "lm_head.weight"):
            others = names_of_other_tasks(own_family, config) if others is None else others
            if canonical not in others and name_of_today(name) not in others:
                raise CheckpointError(f"weights: unexpected tensor {name[:80]!r}; config.json describes another model")
    for name, whole in copies.items():
        original = found.setdefault(own_family.copies[whole], name)
        if config.lm or whole.startswith(own_family.prefix):  # outside of the body it is an output's, then not read
            check_copy(where, name, original)
    return found


def put_parameter(model: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter by `value` without copying."""
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    setattr(module, last, nn.Parameter(value, requires_grad=getattr(module, last).requires_grad))


def state_in_their_names(model: Transformer, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Every weight under its Hugging Face name and layout, on the CPU; tied weights once. Quantized ones stay so, in
    the parts that compressed-tensors has."""
    if any(isinstance(part, Adapter) for part in model.modules()):
        raise ConfigError(
            "model: expected weights alone, got adapters beside them; merge them, or save an adapter folder"
        )
    config, ours = unpadded(model.config, {name: p.detach() for name, p in model.named_parameters()})
    state: dict[str, Tensor] = {}
    maps = quantized_maps(model)
    for name, weight in weights_in_files(config).items():
        if weight.ours and weight.ours[0] in maps:
            state |= state_of(name, weight, [maps[ours_name] for ours_name in weight.ours])
            continue
        tensor = to_theirs(weight, ours)
        state[name] = tensor.to("cpu", dtype or tensor.dtype)
    return state


def weights_in_files(config: ModelConfig) -> dict[str, Weight]:
    """Name of a tensor in a folder of this model -> the row that tells which of our parameters it is made of."""
    own_family = family(config.family)
    prefix, written = own_family.prefix, prefix_in_files(own_family, config)
    rows: dict[str, Weight] = {}
    for weight in expanded(own_family, config):
        name = weight.theirs
        in_body = name.startswith(prefix) if prefix else not weight.ours[0].startswith("heads.")
        rows[written + name.removeprefix(prefix) if in_body else name] = weight
    return rows


def config_json(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What stands in config.json."""
    config, _ = unpadded(config, {})
    own_family = family(config.family)
    ids: dict[str, Any] = {f"{role}_token_id": config.special_ids.get(role) for role in ("bos", "eos", "pad")}
    tasks = own_family.all_tasks
    return {
        "architectures": [task_of_config(tasks, config).architecture if tasks else own_family.architecture],
        "model_type": own_family.model_type,
        "dtype": str(dtype).removeprefix("torch."),
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie,
        "initializer_range": config.init.std,
        **own_family.write(config),
        **label_keys(config),
        **ids,
    }


def save_model(
    model: Transformer,
    folder: str | Path,
    tokenizer: Tokenizer | None = None,
    parents: dict[str, str] | None = None,
    facts: dict[str, Any] | None = None,
    kind: str = "model",
    card: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a self-contained model folder: config, weights (in files of at most `shard_bytes`, or of one tensor),
    tokenizer, chat template, generation config and card.

    The folder must be the caller's scratch (see `train.checkpointing` for the atomic writer).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = model.embedding.weight.dtype
    quantization = quantization_of(model, weights_in_files(model.config))
    raw = config_json(model.config, dtype) | ({} if quantization is None else {"quantization_config": quantization})
    save_description(model, dtype, folder, tokenizer)
    write_json(folder / "config.json", raw)
    write_sharded(folder, state_in_their_names(model), shard_bytes)
    if card:
        write_card(folder, kind, parents, raw, facts)


def save_description(model: Transformer, dtype: torch.dtype, folder: Path, tokenizer: Tokenizer | None = None) -> None:
    """Write all of a model folder but its weights and card. What the folder that the model was read from said of
    generating stays said; its stop ids are joined by those of the tokenizer and its chat format."""
    config, before = model.config, model.generation
    write_json(folder / "config.json", config_json(config, dtype))
    ids = config.special_ids
    renderer = chat_renderer(tokenizer) if tokenizer is not None else None
    ends = renderer.stop_ids if renderer is not None else tokenizer.stop_ids if tokenizer is not None else ()
    known = {i for i in token_ids(before, "eos_token_id", GENERATION) if 0 <= i < config.vocab_size}
    stops = sorted({i for role, i in ids.items() if role == "eos"} | set(ends) | known)
    generation = {"bos_token_id": ids.get("bos"), "eos_token_id": stops or None, "pad_token_id": ids.get("pad")}
    if config.encoder is not None and config.decoder is not None:  # where transformers looks for it
        generation[START] = start_id(config)
    stated = {key: value for key, value in generation.items() if value is not None}
    write_json(folder / GENERATION, {**before, **stated})
    if tokenizer is not None:
        naming_inputs(tokenizer, config).save(folder)
    if renderer is not None:
        (folder / "chat_template.jinja").write_text(renderer.template(), encoding="utf-8")


def naming_inputs(tokenizer: Tokenizer, config: ModelConfig) -> Tokenizer:
    """The tokenizer, telling transformers to number two segments for a model that tells them apart; it would not, and
    the model would read pairs otherwise than it was trained."""
    if config.stack.inputs.kinds < 2 or "model_input_names" in tokenizer.config:
        return tokenizer
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return Tokenizer(tokenizer.file, {**tokenizer.config, "model_input_names": names}, tokenizer.template)


def write_sharded(folder: Path, state: dict[str, Tensor], shard_bytes: int) -> None:
    """One model.safetensors, or numbered shards with their index when the weights exceed `shard_bytes`."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        n_bytes = tensor.numel() * tensor.dtype.itemsize
        if shards[-1] and size + n_bytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += n_bytes
    weight_map: dict[str, str] = {}
    if len(shards) == 1:
        write_safetensors(folder / WEIGHTS, shards[0])
        forget_other_weights(folder, {WEIGHTS})
        return
    for number, shard in enumerate(shards, 1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file_name, shard)
        weight_map.update(dict.fromkeys(shard, file_name))
    total = sum(t.numel() * t.dtype.itemsize for t in state.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    forget_other_weights(folder, {INDEX, *weight_map.values()})


def forget_other_weights(folder: Path, kept: set[str]) -> None:
    """Remove the weights that were saved here before in other files: an index of them would be read instead."""
    for name in (INDEX, WEIGHTS, *(path.name for path in folder.glob("model-?????-of-?????.safetensors"))):
        if name not in kept:
            (folder / name).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_text_durably(path, json.dumps(value, indent=2) + "\n")
