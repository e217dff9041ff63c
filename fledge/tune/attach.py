"""Adapters on a built model: put there, filled, looked up. The base's weights and names stay as they are, frozen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from fledge.errors import ConfigError
from fledge.model.transformer import Transformer
from fledge.nn.adapter import Adapter, Bottleneck, LowRank, LowRankEmbedding, Scale
from fledge.nn.linear import Joined, matrix_of
from fledge.nn.quantized import Int4Linear, Int8Linear, shape_of
from fledge.tune.config import TuneConfig, by_pattern
from fledge.tune.freeze import freeze_parts
from fledge.tune.heads import train_heads
from fledge.tune.sites import EMBEDDING, OUTPUT, Place, Site, chosen, sites
from fledge.tune.virtual import place_before

ATTRIBUTES = {EMBEDDING: "embedding_adapter", OUTPUT: "output_adapter"}


def tune(
    model: Transformer, config: TuneConfig, seed: int = 0, text_ids: Sequence[int] = (), heads: bool = False
) -> Transformer:
    """`model`, frozen, with the adapters of `config` beside its maps, at first changing nothing: its logits are the
    same bits; but bottlenecks change them a little and virtual tokens much, which begin as `text_ids` where the config
    has a text. Method full leaves it as it is, but for what it freezes. `heads`: task heads are trained
    whole beside them. Raises ConfigError for targets that a model doesn't have."""
    if config.method == "full":
        return freeze_parts(model, config.freeze) if config.freeze else model
    if config.virtual:
        freeze(model)
        place_before(model, config, seed, text_ids)
        return train_heads(model) if heads else model
    scales: dict[str, float] = {}
    for place in chosen({name: site for name, site in freeze(model).items() if not of_head(site, heads)}, config):
        check_router(place, config)
        with torch.device("meta"):  # `put` gives it memory where the map has its own
            adapter = made(place, config)
        scale = getattr(adapter, "scale", 1.0)
        if scales.setdefault(place.site.name, scale) != scale:
            raise ConfigError(
                f"tune.alpha_pattern: expected one scale for the maps that are {place.site.name} in transformers, got "
                f"{scales[place.site.name]:g} and {scale:g}; give them the same alpha and rank"
            )
        put(model, place, adapter)
    return train_heads(initialise(model, seed)) if heads else initialise(model, seed)


def check_router(place: Place, config: TuneConfig) -> None:
    """Raises ConfigError for an adapter of a router that PEFT could not open."""
    if place.site.is_router and (config.dora or config.method == "ia3"):
        kind = "DoRA" if config.dora else "(IA)^3"
        raise ConfigError(
            f"tune.targets: expected modules that PEFT has {kind} for, got {place.site.name}, which chooses experts "
            "and can have LoRA alone; leave it out: tune.exclude=[gate]"
        )


def of_head(site: Site, heads: bool) -> bool:
    """Whether a place is in a head that is trained whole, which has no use for an adapter."""
    return heads and site.path.startswith("heads.")


def freeze(model: Transformer) -> dict[str, Site]:
    """The places of a model none of whose weights are trained from now on. Raises ConfigError for one that has
    adapters."""
    if adapted(model):
        raise ConfigError("tune: expected a model without adapters, got one that has some; merge them first")
    model.requires_grad_(False)
    return sites(model)


def made(place: Place, config: TuneConfig, names: tuple[str, ...] = ()) -> Adapter:
    """The adapter of a place, without values; `names` are those that patterns of ranks and alphas can mean, or the
    place's. Raises ConfigError for one that a place can't have."""
    site, names = place.site, names or place.names
    if config.method == "ia3":
        return scale_at(place)
    if config.is_bottleneck:
        return bottleneck_at(place, config)
    rank = int(by_pattern(dict(config.rank_pattern), names, config.rank))
    scale = config.scale(rank, by_pattern(config.alpha_pattern, names, config.alpha))
    if site.kind != "embedding":
        return LowRank(site.inputs, place.outputs, rank, scale, config.dropout, config.dora)
    if config.dora:
        raise ConfigError(
            f"tune.dora: expected linear maps, got {site.name}, an embedding; leave it out of tune.targets"
        )
    return LowRankEmbedding(site.inputs, site.outputs, rank, scale)


def scale_at(place: Place, feeds_forward: bool | None = None) -> Scale:
    """(IA)^3 of a place: of what comes out of attention's keys and values, of what goes into a feed-forward's last map
    (or where `feeds_forward` says so)."""
    site = place.site
    if site.kind == "embedding":
        raise ConfigError(f"tune.targets: expected linear maps for ia3, got {site.name}, an embedding; leave it out")
    inward = place.path.endswith("ffn.down") if feeds_forward is None else feeds_forward
    return Scale(site.inputs, "in") if inward else Scale(place.outputs, "out")


def bottleneck_at(place: Place, config: TuneConfig) -> Bottleneck:
    """A bottleneck behind a linear map. Raises ConfigError for an embedding, the output, and a map that transformers
    has in one module with others, or turns."""
    site = place.site
    if site.kind != "linear" or len(site.parts) > 1 or site.row.how not in ("same", "transposed"):
        raise ConfigError(
            f"tune.targets: expected maps that give what a layer adds, as attention.out and ffn.down, for a "
            f"bottleneck, got {site.name}; leave it out"
        )
    return Bottleneck(place.outputs, config.bottleneck, config.activation)


def put(model: Transformer, place: Place, adapter: Adapter, device: torch.device | None = None) -> None:
    """Stand an adapter beside its map, of the same type and on `device`, or the map's own. Raises ConfigError where the
    input of one of several maps would change, which is one for all."""
    target = model.embedding if place.site.kind != "linear" else model.get_submodule(place.path)
    parent = model.get_submodule(place.path.rpartition(".")[0]) if place.site.kind == "linear" else model
    if isinstance(adapter, Scale) and adapter.side == "in" and isinstance(parent, Joined):
        raise ConfigError(f"tune.targets: expected a map with an input of its own, got {place.path}; leave it out")
    weight = next(chain(target.parameters(), floats(target)))
    for name, shape in [(name, parameter.shape) for name, parameter in adapter.named_parameters()]:
        setattr(adapter, name, nn.Parameter(torch.empty(shape, device=device or weight.device, dtype=weight.dtype)))
    adapter.train(model.training)
    setattr(*((model, ATTRIBUTES[place.path]) if place.path in ATTRIBUTES else (target, "adapter")), adapter)


def floats(target: nn.Module) -> Iterator[Tensor]:
    """The scales of whole numbers, which are of the type that their map computes in."""
    return (buffer for buffer in target.buffers() if buffer.is_floating_point())


@torch.no_grad()
def initialise(model: Transformer, seed: int) -> Transformer:
    """LoRA's A as `nn.Linear` draws weights (Kaiming-uniform with a = √5) and B zero; of an embedding A zero and B from
    a normal distribution; DoRA's lengths those of the rows; (IA)^3's scales one. As PEFT begins."""
    generator = torch.Generator().manual_seed(seed)
    for place, adapter in adapters(model):
        if isinstance(adapter, Scale):
            adapter.vector.fill_(1.0)
        elif isinstance(adapter, Bottleneck):
            narrow(adapter, generator)
        elif not adapter.down.is_meta:
            is_table = isinstance(adapter, LowRankEmbedding)
            drawn = torch.empty((adapter.up if is_table else adapter.down).shape)
            bound = 1 / math.sqrt(drawn.shape[1])
            drawn = (
                drawn.normal_(generator=generator) if is_table else drawn.uniform_(-bound, bound, generator=generator)
            )
            adapter.up.copy_(drawn) if is_table else adapter.up.zero_()
            adapter.down.zero_() if is_table else adapter.down.copy_(drawn)
            if isinstance(adapter, LowRank) and adapter.magnitude is not None:
                adapter.magnitude.copy_(adapter.lengths(weight_at(model, place)))
    return model


def narrow(adapter: Bottleneck, generator: torch.Generator) -> None:
    """Near the identity: matrices from a normal distribution of deviation 0.01, cut off at two of them, biases zero
    (Houlsby et al. 2019, §2.1)."""
    for matrix, bias in ((adapter.down, adapter.down_bias), (adapter.up, adapter.up_bias)):
        bias.zero_()
        if not matrix.is_meta:
            share = math.erf(2 / math.sqrt(2))  # of a normal distribution within two deviations
            drawn = torch.empty(matrix.shape).uniform_(-share, share, generator=generator)
            matrix.copy_((torch.erfinv(drawn) * 0.01 * math.sqrt(2)).clamp(-0.02, 0.02))


def weight_at(model: Transformer, place: Place) -> torch.Tensor:
    """The base's weight [O, I] of a place, in our order of rows."""
    if place.site.kind == "embedding":
        return model.embedding.weight
    if place.site.kind == "output":
        return model.output_matrix
    target = model.get_submodule(place.path)
    return matrix_of(list(target.parts().values()) if isinstance(target, Joined) else [target])


def adapters(model: Transformer) -> Iterator[tuple[Place, LowRank | LowRankEmbedding | Scale | Bottleneck]]:
    """Every adapter of a model with its place, in the model's order."""
    for site in sites(model).values():
        for path in dict.fromkeys((site.path, *site.parts)):
            owner, name = (model, ATTRIBUTES[path]) if path in ATTRIBUTES else (model.get_submodule(path), "adapter")
            adapter = getattr(owner, name, None)
            if adapter is not None:
                yield Place(site, path), adapter


def adapted(model: nn.Module) -> bool:
    """Whether a model has adapters."""
    return any(isinstance(part, Adapter) for part in model.modules())


def all_numbers(model: nn.Module) -> int:
    """How many weights a model has, whole numbers too."""
    quantized = [part for part in model.modules() if isinstance(part, Int8Linear | Int4Linear)]
    return sum(p.numel() for p in model.parameters()) + sum(math.prod(shape_of(one)) for one in quantized)


def trained_parameters(model: nn.Module) -> int:
    """How many numbers training moves."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
