"""Adapter folders as PEFT has them, in and out: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge.errors import CheckpointError, ConfigError
from fledge.lineage import read_card, sha256_file
from fledge.model.folder import find_model, write_json
from fledge.model.safetensors_file import SafetensorsFile, write_safetensors
from fledge.model.transformer import Transformer
from fledge.model.weight_files import INDEX, check_link, pickled, refuse_pickle
from fledge.model.weight_files import WEIGHTS as MODEL_WEIGHTS
from fledge.nn.adapter import LowRank, Scale
from fledge.text.chat import chat_renderer
from fledge.text.tokenizer import Tokenizer
from fledge.tune.attach import adapters, freeze, made, put, scale_at
from fledge.tune.base import CONFIG, HEAD, WEIGHTS, base_of
from fledge.tune.config import TuneConfig
from fledge.tune.copies import without_copies
from fledge.tune.heads import (
    PREFIX,
    PREFIX_OF_VIRTUAL,
    SAVED,
    fill_heads,
    head_modules,
    head_tensors,
    heads_are_trained,
    prefix_of,
    without_head,
)
from fledge.tune.peft_config import (
    VIRTUAL,
    peft_config,
    read_peft_config,
    tune_config_of,
    virtual_tokens_of,
)
from fledge.tune.sites import Place, Site, ends_of, sites
from fledge.tune.spelled import spelled
from fledge.tune.tensors import Stored, fill, in_modules, named, stored
from fledge.tune.told_head import write_head
from fledge.tune.virtual import attach_virtual, check_task, fill_virtual, virtual_facts, virtual_tensors, write_trained

PICKLE = "adapter_model.bin"
DIGEST = "base_digest"


def is_adapter(path: str | Path) -> bool:
    """Whether a folder is an adapter's, or the run of one."""
    return adapter_folder(path) is not None


def adapter_folder(path: str | Path) -> Path | None:
    """The adapter's folder at `path`: itself, or the `model/` of a run folder; None if there is none."""
    candidates = (Path(path), Path(path) / "model")
    return next((c for c in candidates if (c / CONFIG).is_file() and not has_weights(c)), None)


def has_weights(folder: Path) -> bool:
    """Whether a model is in the folder; its config.json alone, which some trainers leave beside an adapter, is none."""
    return any((folder / name).is_file() for name in (MODEL_WEIGHTS, INDEX))


def load_adapter(
    model: Transformer, path: str | Path, base: Path | None = None, device: torch.device | None = None
) -> Transformer:
    """`model`, frozen, with the adapters of a folder beside its maps, on `device` or where the model is.

    Raises ConfigError for a config that asks for what is not computed here, and CheckpointError for weights that are
    missing, damaged, unsafe or don't fit the model, or that were trained beside other weights than those of `base`.
    """
    folder = adapter_folder(path)
    if folder is None:
        if Path(path).is_dir():
            refuse_pickle(Path(path))
        raise CheckpointError(f"{path}: expected an adapter folder with {CONFIG}, found none; check the path")
    raw = read_peft_config(folder)
    tensors, metadata = read_tensors(folder)
    if base is not None and metadata.get(DIGEST) not in (None, base_digest(base)):
        raise CheckpointError(
            f"{folder}: expected the base with digest {str(metadata[DIGEST])[:12]}…, got {base_digest(base)[:12]}… in "
            f"{base}: the adapter was trained beside other weights; give it those"
        )
    check_saved(model, raw)
    is_virtual = raw["peft_type"] in VIRTUAL
    tensors, head = without_head(model, tensors, PREFIX_OF_VIRTUAL if is_virtual else PREFIX)
    if is_virtual:
        check_task(model, raw)
        freeze(model)
        attach_virtual(model, raw["peft_type"], virtual_tokens_of(raw), tensors)
    else:
        found = in_modules(without_copies(model, tensors))
        attach(model, found if base is None else usually(model, found, base), tune_config_of(raw), device)
    whole = (folder / HEAD).is_file()  # else what isn't saved is the base's own
    return fill_heads(model, head, whole) if head or whole else model


def check_saved(model: Transformer, raw: dict[str, Any]) -> None:
    """Raises ConfigError for modules that are saved whole and are no task head's of the model."""
    saved, known = raw.get("modules_to_save") or [], head_modules(model)
    there = {str(place) for module in known for place in (module, module.rpartition(".")[0])}  # a pooler has one dense
    named = saved if isinstance(saved, list) else []
    strange = [one for one in named if not (one in SAVED or any(place.endswith(str(one)) for place in there))]
    if strange or not isinstance(saved, list):
        raise ConfigError(
            f"{CONFIG}: 'modules_to_save': {str(strange or saved)[:60]} is not known here: expected modules of a task "
            f"head that the base is loaded with ({', '.join(known) or 'it has none'})"
        )


def read_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a folder's file. Raises CheckpointError."""
    with opened(folder) as file:
        return {name: file.read(name) for name in file.entries}, dict(file.metadata or {})


def opened(folder: Path) -> SafetensorsFile:
    """A folder's file of tensors. Raises CheckpointError."""
    path = folder / WEIGHTS
    if not path.exists() and (folder / PICKLE).exists():
        raise pickled(folder / PICKLE)
    check_link(path)
    return SafetensorsFile(path)


def usually(model: Transformer, found: dict[str, Any], base: Path) -> dict[str, Any]:
    """`found` by the usual names of modules, from those of the class of `base`."""
    usual = {there: here for here, there in spelled(model, base).items()}
    return {usual.get(name, name): one for name, one in found.items()}


def go_on(model: Transformer, folder: Path, base: Path) -> Transformer:
    """Give a model's adapters the values of those in a checkpoint. Raises CheckpointError for others."""
    tensors, _ = read_tensors(folder)
    tensors, head = without_head(model, tensors, prefix_of(model))
    if head:
        fill_heads(model, head)
    if model.virtual is not None:
        return fill_virtual(model, folder, tensors)
    found = usually(model, in_modules(tensors), base)
    return fill(model, {name: Stored(one) for name, one in found.items()})


def attach(
    model: Transformer, found: dict[str, dict[str, Tensor]], config: TuneConfig, device: torch.device | None = None
) -> Transformer:
    """Stand the adapters of a file beside a model's maps, and fill them."""
    known, values = freeze(model), {}
    for name, tensors in found.items():
        site = site_named(known, name)
        place = Place(site, site.path)
        got = "(IA)^3" if "ia3_l" in tensors else "LoRA" if any("lora" in end for end in tensors) else "bottleneck"
        wanted = "bottleneck" if config.is_bottleneck else "(IA)^3" if config.method == "ia3" else "LoRA"
        if got != wanted:
            raise CheckpointError(f"adapter: {name[:80]}: expected {wanted} by {CONFIG}, got {got}")
        inward = None if got != "(IA)^3" else is_inward(site, tensors["ia3_l"])
        put(model, place, made(place, config, site.names) if inward is None else scale_at(place, inward), device)
        if site.name in values:
            raise CheckpointError(f"adapter: {name[:80]!r}: expected one adapter of {site.name}, got two")
        values[site.name] = Stored(tensors)
    return fill(model, values).requires_grad_(False)


def is_inward(site: Site, vector: Tensor) -> bool:
    """Whether a vector of (IA)^3 scales what a module reads: a row [1, I], where the other is a column [O, 1]."""
    return vector.dim() == 2 and vector.shape[0] == 1 and not (site.outputs == 1 and vector.shape[1] == 1)


def site_named(known: dict[str, Site], name: str) -> Site:
    """The place that a file calls `name`, with or without what stands before it. Raises CheckpointError."""
    if name in known:
        return known[name]
    alike = [site for site in known.values() if any(own == name or own.endswith(f".{name}") for own in site.names)]
    if len(alike) != 1:
        some = ", ".join(sorted({own.rpartition(".")[2] for own in known}))
        raise CheckpointError(f"adapter: expected modules of the base, got {name[:80]!r}; there are {some}")
    return alike[0]


def save_adapter(
    model: Transformer, folder: str | Path, config: TuneConfig, base: Path, tokenizer: Tokenizer | None = None
) -> None:
    """Write a model's adapters into a folder, with tokenizer and chat template where there are any, and no card."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"modules_to_save": head_modules(model)} if heads_are_trained(model) else {}
    if model.virtual is not None:
        kind, facts = virtual_facts(model)
        write_json(folder / CONFIG, peft_config(kind, str(base), model.config, facts) | whole)
        tensors = virtual_tensors(model)
        write_trained(model, folder)
    else:
        names = spelled(model, base)
        found = {names.get(name, name): one for name, one in stored(model).items()}
        write_json(folder / CONFIG, described(model, found, config, base, names) | whole)
        tensors = named(found)
    if whole:
        tensors |= head_tensors(model)
        write_head(model, folder)
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    write_safetensors(folder / WEIGHTS, tensors, {DIGEST: base_digest(base)})
    if tokenizer is not None:
        tokenizer.save(folder)
        renderer = chat_renderer(tokenizer)
        if renderer is not None:
            (folder / "chat_template.jinja").write_text(renderer.template(), encoding="utf-8")


def described(
    model: Transformer, found: dict[str, Stored], config: TuneConfig, base: Path, spelling: dict[str, str]
) -> dict[str, Any]:
    """adapter_config.json of a model's adapters."""
    known, names = {spelling.get(name, name): site for name, site in sites(model).items()}, set(found)
    more: dict[str, Any] = {
        "target_modules": list(ends_of(names, known)),
        "fan_in_fan_out": any(known[name].lies_transposed for name in names),
    }
    own = list(adapters(model))
    if any(isinstance(adapter, Scale) for _, adapter in own):
        inside = {place.site.name for place, one in own if isinstance(one, Scale) and one.side == "in"}
        inward = {spelling.get(name, name) for name in inside}
        ends = list(ends_of(inward, known))  # which PEFT wants to be some of the targets, word by word
        more["target_modules"] = [*ends_of(names - inward, known), *ends]
        return peft_config("IA3", str(base), model.config, {**more, "feedforward_modules": ends})
    if config.is_bottleneck:
        more = {"target_modules": more["target_modules"], "bottleneck_size": config.bottleneck}
        return peft_config("BOTTLENECK", str(base), model.config, {**more, "activation": config.activation})
    alphas = {name: alpha_of(one, config.rslora) for name, one in found.items()}
    first = next(iter(found.values()))
    rank, alpha = first.rank, alphas[next(iter(found))]
    more |= {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0
        if any(known[name].is_router for name in names)
        else config.dropout,  # PEFT refuses it there
        "bias": "none",
        "use_rslora": config.rslora,
        "use_dora": any(isinstance(one, LowRank) and one.magnitude is not None for _, one in own),
        "init_lora_weights": True,
        "rank_pattern": patterned({name: one.rank for name, one in found.items() if one.rank != rank}, known),
        "alpha_pattern": patterned({name: one for name, one in alphas.items() if one != alpha}, known),
    }
    return peft_config("LORA", str(base), model.config, more)


def patterned(values: dict[str, float], known: dict[str, Site]) -> dict[str, float]:
    """Numbers by names of modules; a router's by that of its weight too, by which PEFT may look it up, in a module
    whose name is another in files."""
    return {router_pattern(name) if known[name].is_router else name: value for name, value in values.items()}


def router_pattern(name: str) -> str:
    block, _, last = name.rsplit(".", 2)
    return "|".join(rf"{block}\.[^.]+\.{end}" for end in (last, rf"{last}\.weight"))


def alpha_of(one: Stored, rslora: bool) -> float | int:
    """PEFT's alpha of an update: a whole number where it is one."""
    alpha = one.scale * (math.sqrt(one.rank) if rslora else one.rank)
    return round(alpha) if abs(alpha - round(alpha)) < 1e-9 * abs(alpha) else alpha


def base_digest(base: Path) -> str:
    """Digest of a base's files of weights; of those that its card knows, as the card has them."""
    try:
        known = read_card(base)["files"]
    except CheckpointError:
        known = {}
    digest = hashlib.sha256()
    for path in sorted(base.glob("*.safetensors")):
        digest.update(str(known.get(path.name) or sha256_file(path)).encode())
    return digest.hexdigest()


def base_folder(path: str | Path) -> Path:
    """The model folder beside whose weights an adapter was trained. Raises CheckpointError if it isn't here."""
    folder = adapter_folder(path)
    assert folder is not None
    return find_model(base_of(read_peft_config(folder), folder))
