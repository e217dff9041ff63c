"""`fledge show`: a model's modules, parameters, bytes, FLOPs and cache, before anything is allocated."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from fledge.config import convert, from_dict, read_yaml
from fledge.data.mixture import Mixture, Source, SourcePlan, plan_lines, planned
from fledge.data.mixture_config import SourceConfig, StageConfig, check_mixture
from fledge.data.shards import open_shards
from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.cost import DEVICES, Budget, number_of, this_cpu, training_cost
from fledge.model.count import bytes_by_type, count, tree, weight_flops_per_token
from fledge.model.families import FAMILIES, family, over_preset
from fledge.model.folder import config_of, find_model, read_config
from fledge.model.quantization import read_quantization
from fledge.model.quantized_files import stored_matrices
from fledge.model.show_config import ShowConfig
from fledge.model.weight_files import opened

DEFAULT_VOCAB = 32000


def show(config: ShowConfig, json: bool = False) -> dict[str, Any]:
    """Print (without `json`) and give the counts of the model that `config` names."""
    model = resolve(config)
    counts = count(model, config.cache_bits)
    result = {
        "family": model.family,
        "parameters": counts.parameters,
        "by_component": counts.by_component,
        "bytes": bytes_by_type(counts.parameters),
        "flops_per_token": counts.flops_per_token,
        "training_flops_per_token": counts.training_flops_per_token,
        "cache_bytes_per_token": counts.cache_bytes_per_token,
        "context_tokens": model.context_tokens,
        "tree": [{"depth": d, "name": n, "shapes": s} for d, n, s in tree(model)],
    }
    if config.path and is_folder(config.path):
        result |= stored(find_model(config.path))
    if config.rows:
        from fledge.model.memory import training_memory  # torch's fake tensors take seconds to import

        row_tokens = config.row_tokens or model.context_tokens
        result["training_bytes"] = vars(training_memory(model, config.rows, row_tokens))
        result["checkpointed_training_bytes"] = vars(training_memory(model, config.rows, row_tokens, True))
    if config.path.endswith((".yaml", ".yml")):
        result |= mixture_plan(read_yaml(config.path), model.context_tokens)
    if config.tokens:
        result["training_run"] = training_run(config, counts.training_flops_per_token, weight_flops_per_token(model))
    if not json:
        print_counts(result, config.cache_bits)
    return result


def resolve(config: ShowConfig) -> ModelConfig:
    """The model meant: a folder, a preset, a YAML file's `model:` group, or the shape given."""
    path = config.path
    shape = config.model
    given = {k: v for k, v in vars(shape).items() if v != getattr(ShapeConfig(), k)}
    if path.endswith((".yaml", ".yml")):
        group = read_yaml(path).get("model", {})
        shape = replace(from_dict(ShapeConfig, group, f"{path}: model"), **given)
    elif path and any(path in f.presets for f in FAMILIES.values()):
        shape = replace(shape, preset=path)
    elif path:
        if not Path(path).exists():
            known = ", ".join(name for f in FAMILIES.values() for name in f.presets)
            raise ConfigError(f"{path}: expected a model folder, a YAML file or a preset; presets: {known}")
        if given:
            raise ConfigError(
                f"model.{next(iter(given))}: a folder's model is what its config.json says; leave it out, or give a "
                "preset or a YAML file"
            )
        return read_config(find_model(path))[1]
    elif not given:
        raise ConfigError("show: expected a model folder, a preset, a YAML file or model.width=… and so on; see --help")
    shape = over_preset(shape)
    return family(shape.family).new_config(replace(shape, vocab_size=shape.vocab_size or DEFAULT_VOCAB))


def is_folder(path: str) -> bool:
    """Whether `path` is a folder of a model, and not a preset or a YAML file."""
    known = any(path in f.presets for f in FAMILIES.values())
    return not known and not path.endswith((".yaml", ".yml"))


def stored(folder: Path) -> dict[str, Any]:
    """How a folder whose weights are quantized keeps them, by its files' headers: weights of each scheme, what is left
    in floating point, and bytes in all. Nothing for other folders."""
    schemes = read_quantization(config_of(folder))
    if not schemes:
        return {}
    with ExitStack() as files:
        where = opened(folder, files)
        found: Counter[str] = Counter()
        for matrix in stored_matrices(where, schemes).values():
            part = "_packed" if matrix.scheme.group else ""
            found[str(matrix.scheme)] += math.prod(matrix.entry(part)[0]) * (8 if matrix.scheme.group else 1)
        parts = {name + part for name, one in stored_matrices(where, schemes).items() for part in one.parts}
        plain = sum(math.prod(file.entries[name].shape) for name, file in where.items() if name not in parts)
        total = sum(file.entries[name].n_bytes for name, file in where.items())
    return {"quantized": {**dict(sorted(found.items())), "floating point": plain}, "stored_bytes": total}


def mixture_plan(file: dict[str, Any], context_tokens: int) -> dict[str, Any]:
    """What the run of a training file reads of each source of its mixture, in windows; nothing where it has none, or
    where it leaves out the steps or the rows. Raises DataError for a mixture that can't be opened or doesn't last."""
    data, train = (group if isinstance(group, dict) else {} for group in (file.get("data"), file.get("train")))
    steps, rows, row_tokens, seed = (train.get(key) for key in ("steps", "rows", "row_tokens", "seed"))
    if not data.get("mixture") or not isinstance(steps, int) or not isinstance(rows, int):
        return {}
    sources = convert(tuple[SourceConfig, ...], data["mixture"], "data.mixture")
    stages = convert(tuple[StageConfig, ...], data.get("stages") or [], "data.stages")
    check_mixture(sources, stages)
    mixture = Mixture(tuple(Source(source, open_shards(source.path)) for source in sources), stages)
    length = row_tokens or context_tokens
    n_rows = [max(1, (source.dataset.train.n_tokens - length) // length) for source in mixture.sources]
    plan = planned(mixture, [(n, n * length) for n in n_rows], steps, rows, 1 if seed is None else seed)
    return {"mixture": [vars(source) for source in plan]}


def training_run(config: ShowConfig, flops: float, weight_flops: float) -> dict[str, Any]:
    """What a run over `config.tokens` takes; see `training_cost`."""
    device = this_cpu(config.watts) if config.device == "cpu" else DEVICES[config.device]
    device = replace(device, watts=config.watts or device.watts)
    budget = Budget(
        number_of(config.tokens), config.devices, config.utilisation, config.recompute, config.energy_overhead,
        config.price_per_hour,
    )  # fmt: skip
    return {"device": config.device} | training_cost(budget, device, flops, weight_flops)


def print_counts(result: dict[str, Any], cache_bits: int) -> None:
    for row in result["tree"]:
        print(f"{'  ' * row['depth']}{row['name']}  {row['shapes']}".rstrip())
    total = result["parameters"]
    print(f"\nparameters {total:,} ({result['family']}, context {result['context_tokens']:,})")
    for name, n in result["by_component"].items():
        print(f"  {name:<10} {n:>16,}  {100 * n / total:5.1f} %")
    print("bytes      " + " · ".join(f"{name} {size(n)}" for name, n in result["bytes"].items()))
    if "quantized" in result:
        kinds = " · ".join(f"{name} {n:,}" for name, n in result["quantized"].items())
        print(f"stored     {size(result['stored_bytes'])}: weights in {kinds}")
    print(f"FLOPs      {result['flops_per_token']:.3g} a token forward, "
          f"{result['training_flops_per_token']:.3g} in training (full context)")  # fmt: skip
    cache = result["cache_bytes_per_token"]
    whole = cache * result["context_tokens"]
    print(f"cache      {size(cache)} a token at {cache_bits} bits, {size(whole)} a full context")
    for key, how in (("training_bytes", ""), ("checkpointed_training_bytes", ", blocks checkpointed")):
        if key in result:
            parts = {name: size(n) for name, n in result[key].items()}
            peak = parts.pop("peak")
            told = " · ".join(f"{name} {text}" for name, text in parts.items())
            print(f"training   {peak} at its peak{how}: {told}")
    for line in plan_lines([SourcePlan(**source) for source in result.get("mixture", ())]):
        print(f"reads      {line}")
    if "training_run" in result:
        print_run(result["training_run"])


def print_run(run: dict[str, Any]) -> None:
    speed = f"{run['utilisation']:.1%} of {run['peak_flops'] / 1e12:.4g} TFLOP/s (MFU {run['mfu']:.1%})"
    print(f"run        {run['tokens']:.4g} tokens on {run['devices']:,} × {run['device']} at {speed}")
    formula = "8 N D" if run["recompute"] else "6 N D"
    print(f"           {run['flops']:.3g} FLOPs: {run['days']:.3g} days ({run['days_by_weights']:.3g} by {formula}, "
          f"without scores)")  # fmt: skip
    energy = "power not known" if run["kwh"] is None else f"{run['kwh']:,.4g} kWh"
    price = "" if run["price"] is None else f", price {run['price']:,.0f}"
    print(f"           {run['device_hours']:,.4g} device hours, {energy}{price}")


def size(n_bytes: float) -> str:
    """`1536` as `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.4g} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.4g} TiB"
