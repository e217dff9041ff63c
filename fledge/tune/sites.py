"""Where adapters can stand in a model, by transformers' names of its modules and by ours.

transformers may hold several of our maps in one (GPT-2's c_attn is q, k and v): one adapter then changes them together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fledge.errors import ConfigError
from fledge.model.families import family
from fledge.model.families.family import Weight
from fledge.model.folder import weights_in_files
from fledge.model.names import to_ours, to_theirs
from fledge.model.resize import unpadded
from fledge.model.transformer import Transformer
from fledge.nn.linear import Joined, Linear
from fledge.nn.quantized import Int4Linear, Int8Linear, shape_of
from fledge.tune.config import ALL_LINEAR, TuneConfig, matches

OUTPUT, EMBEDDING = "output", "embedding"
UPRIGHT = {"transposed": "same", "fused_transposed": "fused"}
ROWS = ("same", "fused", "interleaved", "pairs", *UPRIGHT)


@dataclass(frozen=True)
class Site:
    """One module of transformers' that can have an adapter. `name`: theirs; `path`: ours, of a Linear, of a Joined, of
    the embedding or of the output; `parts`: our maps in it with their numbers of outputs; `row`: how their rows lie.
    `older`: their name in earlier versions, where it was another."""

    name: str
    path: str
    kind: Literal["linear", "embedding", "output"]
    inputs: int
    parts: dict[str, int]
    row: Weight
    older: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Theirs of today, and of earlier versions."""
        return (self.name, self.older) if self.older else (self.name,)

    @property
    def outputs(self) -> int:
        return sum(self.parts.values())

    @property
    def is_router(self) -> bool:
        """Whether it chooses experts: to transformers a weight that is in no linear module."""
        return self.path.endswith(".router") and self.name != self.path

    @property
    def lies_transposed(self) -> bool:
        """Whether their weight is [in, out], as in a Conv1D of GPT-2."""
        return self.row.how in UPRIGHT

    def rows_to_ours(self, tensor: Tensor) -> Tensor:
        """Rows [O, ...] from their order to ours."""
        shapes = {f"{part}.weight": (size, *tensor.shape[1:]) for part, size in self.parts.items()}
        pieces = to_ours(self.upright(), tensor, shapes)
        return torch.cat([pieces[name] for name in self.row.ours])

    def rows_to_theirs(self, tensor: Tensor) -> Tensor:
        """Rows [O, ...] from our order to theirs."""
        pieces = tensor.split(list(self.parts.values()))
        return to_theirs(self.upright(), dict(zip(self.row.ours, pieces, strict=True)))

    def upright(self) -> Weight:
        return replace(self.row, how=UPRIGHT.get(self.row.how, self.row.how))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Place:
    """An adapter's place: the whole of a site, or one of its maps."""

    site: Site
    path: str

    @property
    def names(self) -> tuple[str, ...]:
        """Theirs, if it is all of their module, and ours."""
        whole = self.path == self.site.path
        return (*self.site.names, self.path) if whole else (self.path,)

    @property
    def outputs(self) -> int:
        return self.site.outputs if self.path == self.site.path else self.site.parts[self.path]

    @property
    def rows(self) -> slice:
        """Which rows of the site's outputs, in our order."""
        if self.path == self.site.path:
            return slice(0, self.site.outputs)
        names = list(self.site.parts)
        start = sum(self.site.parts[name] for name in names[: names.index(self.path)])
        return slice(start, start + self.outputs)


def sites(model: Transformer) -> dict[str, Site]:
    """Every place of a model, by their name."""
    rows = weights_in_files(model.config).items()
    asked = [site_of(model, name.removesuffix(".weight"), row) for name, row in rows if name.endswith(".weight")]
    found = [site for site in asked if site is not None]
    if model.config.lm and not any(site.path == OUTPUT for site in found):
        found.append(tied_output(model))
    return {site.name: site for site in (named_today(model, site) for site in found)}


def named_today(model: Transformer, site: Site) -> Site:
    """A place by the name of its module, where files keep that of an earlier version."""
    name = family(model.config.family).modules.get(site.name)
    return site if name is None else replace(site, name=name, older=site.name)


def site_of(model: Transformer, name: str, row: Weight) -> Site | None:
    """The place that a row of the name table stands for; None for what is no linear map, no token embedding, or a map
    of an expert: in transformers those are no modules."""
    if not row.ours or row.how not in ROWS or row.experts:
        return None
    paths = [ours.removesuffix(".weight") for ours in row.ours]
    if paths == [EMBEDDING]:
        config, _ = unpadded(model.config, {})
        shared = config.encoder is not None and config.decoder is not None
        return None if shared else Site(name, EMBEDDING, "embedding", config.vocab_size, {EMBEDDING: width(model)}, row)
    if paths == [OUTPUT]:
        return Site(name, OUTPUT, "output", output_inputs(model), {OUTPUT: unpadded_vocab(model)}, row)
    maps = [submodule(model, path) for path in paths]
    shapes = [
        shape_of(one) if isinstance(one, Int8Linear | Int4Linear) else tuple(one.weight.shape)
        for one in maps
        if isinstance(one, Linear | Int8Linear | Int4Linear)
    ]
    if len(shapes) < len(maps):
        return None
    path = paths[0]
    if len(paths) > 1:
        path = path.rpartition(".")[0]
        joined = submodule(model, path)
        if not isinstance(joined, Joined) or [f"{path}.{part}" for part in joined.parts()] != paths:
            return None
    parts = {path: shape[0] for path, shape in zip(paths, shapes, strict=True)}
    return Site(name, path, "linear", shapes[0][1], parts, row)


def submodule(model: Transformer, path: str) -> object:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def tied_output(model: Transformer) -> Site:
    """The output product of a model whose matrix is the embedding: in transformers a module of its own."""
    table = family(model.config.family).weights(replace(model.config, tie=False))
    row = next((row for row in table if row.ours == (f"{OUTPUT}.weight",)), Weight(OUTPUT, (f"{OUTPUT}.weight",)))
    name = row.theirs.removesuffix(".weight")
    return Site(name, OUTPUT, "output", output_inputs(model), {OUTPUT: unpadded_vocab(model)}, row)


def width(model: Transformer) -> int:
    return int(model.embedding.weight.shape[1])


def output_inputs(model: Transformer) -> int:
    return int(model.output_matrix.shape[1])


def unpadded_vocab(model: Transformer) -> int:
    return model.config.tokens or model.config.vocab_size


def chosen(found: dict[str, Site], config: TuneConfig) -> list[Place]:
    """The places that a config's targets mean, in the model's order.

    Raises ConfigError for a target that means none, and for two that mean a module and a map in it.
    """
    used: set[str] = set()
    places = []
    for site in found.values():
        options = dict.fromkeys((site.path, *site.parts))
        here = [place for place in (Place(site, path) for path in options) if meant(place, config, used)]
        if len(here) > 1 and here[0].path == site.path:
            raise ConfigError(
                f"tune.targets: expected {site.name} or maps in it, got both ({', '.join(p.path for p in here[1:])}); "
                "leave one out"
            )
        places += here
    unused = [pattern for pattern in config.patterns if pattern not in used]
    if unused:
        some = ", ".join(sorted({name.rpartition(".")[2] for name in found}))
        raise ConfigError(
            f"tune.targets: expected names of linear maps or of the token embedding, got {unused[0][:80]!r}, which "
            f"means none; there are {some} (experts, tables of positions and norms can have no adapter)"
        )
    if not places:
        raise ConfigError("tune.exclude: expected to leave something to tune, got nothing left; exclude less")
    return places


def meant(place: Place, config: TuneConfig, used: set[str]) -> bool:
    """Whether targets mean a place; those that do are `used`, whether or not it is excluded."""
    inner = place.site.kind == "linear" and not place.path.startswith("heads.") and place.path == place.site.path
    hits = [
        pattern
        for pattern in config.patterns
        if (inner if pattern == ALL_LINEAR else any(matches(pattern, name) for name in place.names))
    ]
    used.update(hits)
    return bool(hits) and not any(matches(pattern, name) for pattern in config.exclude for name in place.names)


def ends_of(names: set[str], found: dict[str, Site]) -> Iterator[str]:
    """`names` as PEFT's target_modules: their last words where these mean nothing else, else as they are."""
    for end in dict.fromkeys(name.rpartition(".")[2] for name in sorted(names)):
        alike = {name for name in found if matches(end, name)}
        yield from [end] if alike <= names else sorted(alike & names)
