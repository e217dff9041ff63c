"""Pre-training on a mixture: every objective through one seam, exact resume, validation by source, real corpora."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fledge.batch import slice_rows
from fledge.data.build import build
from fledge.data.config import BuildConfig
from fledge.data.mixed_batches import MixedBatches
from fledge.data.mixture import Mixture, Source
from fledge.data.mixture_config import SourceConfig, StageConfig
from fledge.data.shards import Dataset, Shard
from fledge.errors import CheckpointError, DataError, Interrupted
from fledge.log import read_log
from fledge.model.config import ShapeConfig
from fledge.model.init import initialise
from fledge.model.show import show
from fledge.model.show_config import ShowConfig
from fledge.model.transformer import build as build_model
from fledge.recipes.config import PretrainConfig, TextDataConfig
from fledge.recipes.language import LanguageRecipe
from fledge.recipes.objective import objective_model, objective_shape, objective_tokenizer
from fledge.recipes.pretrain import objective_recipe, pretrain, resolve_shape
from fledge.train.config import RunConfig, TrainConfig
from tests.data.corrupted import stories, wordpiece
from tests.recipes.objectives import FAMILIES, config_of, recipe_of


def mixed_recipe(config: PretrainConfig, shards: dict[str, tuple[Shard, float]]) -> LanguageRecipe:
    """The recipe of a mixture of shards in memory, each the held-out text of its source too."""
    sources = tuple(
        Source(SourceConfig(name, weight), Dataset(Path(name), shard, shard, wordpiece(), {"digest": name}))
        for name, (shard, weight) in shards.items()
    )
    tokenizer = objective_tokenizer(config, wordpiece())
    shape = resolve_shape(objective_shape(config), tokenizer)
    model = initialise(build_model(objective_model(config, shape), "cpu"), config.train.seed)
    return objective_recipe(config, Mixture(sources), tokenizer, model, config.train.row_tokens or shape.context_tokens)


SHARDS = {"long": (stories(5, 40), 1.0), "short": (stories(30, 3), 2.0)}


CASES = [(name, family, "padded") for name, family in FAMILIES.items()]
CASES += [(name, FAMILIES[name], "packed") for name in ("masked", "spans", "denoise")] + [("prefix", "llama", "packed")]


@pytest.mark.parametrize(("objective", "family", "layout"), CASES, ids=lambda value: value)
def test_a_mixed_batch_is_the_rows_of_its_sources_for_every_objective(objective, family, layout):
    """Each row alone, as its own source makes it, has the loss that it has in the batch."""
    recipe = mixed_recipe(config_of(objective, family, data={"layout": layout}), SHARDS)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in recipe.model.parameters():
            parameter.normal_()  # initial weights hardly attend to anything
    recipe.model.double().eval()
    source = recipe.source
    assert isinstance(source, MixedBatches)
    batch = recipe.batch(3)
    sources, places = source.picks.rows(24, 32)
    assert set(sources.tolist()) == {0, 1} and sources.tolist() != sorted(sources.tolist())
    with torch.no_grad():
        whole = recipe.loss(batch)
        alone = [source.sources[s].rows_at(np.array([p])) for s, p in zip(sources, places, strict=True)]
        for name, term in whole.terms.items():
            parts = [recipe.loss(row).terms[name] for row in alone]
            assert sum(float(part.total) for part in parts) == pytest.approx(float(term.total), rel=1e-6)
            assert sum(part.weight for part in parts) == term.weight
        for number, row in enumerate(alone):
            cut = recipe.loss(slice_rows(batch, number, number + 1))
            for name, term in recipe.loss(row).terms.items():
                assert float(cut.terms[name].total) == pytest.approx(float(term.total), rel=1e-6)
    assert batch.n_tokens == sum(row.n_tokens for row in alone)
    assert [name for row in alone for name in row.sample_ids] == list(batch.sample_ids)


def test_rows_in_another_order_are_another_batch():
    """The control: rows that change places have other losses in those places."""
    recipe = mixed_recipe(config_of("masked"), SHARDS)
    recipe.model.eval()
    batch = recipe.batch(3)
    with torch.no_grad():
        losses = [float(recipe.loss(slice_rows(batch, n, n + 1)).terms["masked"].total) for n in range(8)]
    assert len({round(loss, 3) for loss in losses}) == 8


@pytest.mark.parametrize("objective", ["causal", "masked+next"])
def test_validation_is_each_sources_own_and_the_mean_by_stated_weights(objective):
    config = config_of(objective)
    mixed = mixed_recipe(config, SHARDS)
    mixed.model.eval()
    with torch.no_grad():
        found, few = mixed.validate(0), mixed.validate(2)
        for name, (shard, _) in SHARDS.items():
            plain = replace(recipe_of(config, shard), model=mixed.model)
            own = plain.validate(0)
            assert {f"{key}/{name}": value for key, value in own.items()} == pytest.approx(
                {key: value for key, value in found.items() if key.endswith(f"/{name}")}, rel=1e-6
            )
    for key in (key for key in found if "/" not in key and key != "val_tokens"):
        assert found[key] == pytest.approx((found[f"{key}/long"] + 2 * found[f"{key}/short"]) / 3, rel=1e-9)
    assert found["val_loss"] != pytest.approx((found["val_loss/long"] + found["val_loss/short"]) / 2, rel=1e-6)
    assert found["val_tokens"] == found["val_tokens/long"] + found["val_tokens/short"]
    assert few["val_tokens/long"] > 0 and few["val_tokens/short"] > 0


def test_a_source_without_held_out_text_has_no_part_in_the_validation():
    mixed = mixed_recipe(config_of("causal"), SHARDS)
    mixed.model.eval()
    mixed.sources = (mixed.sources[0], replace(mixed.sources[1], batches=()))
    with torch.no_grad():
        found = mixed.validate(0)
    assert found["val_loss"] == found["val_loss/long"] and "val_loss/short" not in found


# ---- run folders


def write_corpora(folder: Path, data_file) -> dict[str, Path]:
    """Three real corpora of the same tokenizer: a play, short tales in lines of JSON, very short poems."""
    play = data_file("text_tinyshakespeare/input.txt").read_text()[:12_000]
    tales = data_file("text_tinystories_sample/tinystories.txt").read_text()[:20_000].split("\n\n")
    poems = gzip.decompress(data_file("text_zh_poetry/tang.jsonl.gz").read_bytes()).decode().splitlines()[:12]
    (folder / "play.txt").write_text(play)
    (folder / "tales.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in tales if text.strip()))
    (folder / "poems.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in poems))
    for name in ("play.txt", "tales.jsonl", "poems.jsonl"):
        build(BuildConfig(folder / Path(name).stem, str(folder / name), "bytes"), json=True)
    return {name: folder / name for name in ("play", "tales", "poems")}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory, request):
    from tests.conftest import data_root, missing

    def find(name: str) -> Path:
        path = data_root() / name
        if not path.exists():
            missing(name)
        return path

    return write_corpora(tmp_path_factory.mktemp("corpora"), find)


def config(corpora: dict[str, Path], run: Path, weights: tuple[float, ...] = (3, 2, 1), **more: object):
    train = {"steps": 6, "rows": 8, "eval_every_steps": 3, "save_every_steps": 0, "threads": 1, "device": "cpu"}
    train |= {key: value for key, value in more.items() if key not in ("stages", "max_epochs")}
    sources = tuple(
        SourceConfig(str(path), weight, max_epochs=more.get("max_epochs", 0.0) if name == "poems" else 0.0)  # type: ignore[arg-type]
        for (name, path), weight in zip(corpora.items(), weights, strict=True)
    )
    data = TextDataConfig(mixture=sources, stages=more.get("stages", ()))  # type: ignore[arg-type]
    shape = ShapeConfig(width=16, layers=1, heads=2, context_tokens=32, dropout=0.1)
    return PretrainConfig(shape, data, TrainConfig(**train), RunConfig(str(run)))  # type: ignore[arg-type]


def weights_of(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def losses(run: Path) -> list[float]:
    return [event["loss"] for event in read_log(run / "log.jsonl") if event["kind"] == "step"]


STAGES = (StageConfig(2, {"poems": 1, "play": 1}, ramp_steps=2),)


def test_a_stopped_mixture_goes_on_to_the_same_bits(corpora, tmp_path):
    pretrain(config(corpora, tmp_path / "straight", stages=STAGES))
    with pytest.raises(Interrupted):
        pretrain(config(corpora, tmp_path / "run", stages=STAGES, stop_after_steps=3))
    pretrain(config(corpora, tmp_path / "run", stages=STAGES))
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "straight")
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    pretrain(config(corpora, tmp_path / "flat"))  # the control: other shares from step 2 on
    assert losses(tmp_path / "flat")[:2] == losses(tmp_path / "straight")[:2]
    assert weights_of(tmp_path / "flat") != weights_of(tmp_path / "straight")


def test_a_run_logs_its_plan_and_each_sources_validation(corpora, tmp_path, capsys):
    result = pretrain(config(corpora, tmp_path / "run", steps=40, eval_every_steps=20, max_epochs=0.1))
    events = read_log(tmp_path / "run" / "log.jsonl")
    (plan,) = [event["sources"] for event in events if event["kind"] == "mixture"]
    assert [(s["name"], round(s["weight"], 4)) for s in plan] == [("play", 0.5), ("tales", 0.3333), ("poems", 0.1667)]
    assert sum(source["tokens"] for source in plan) == 40 * 8 * 32 and plan[2]["spent"]
    assert "tales" in capsys.readouterr().err
    (validation,) = [event for event in events if event["kind"] == "evaluate"]
    assert {f"val_loss/{name}" for name in corpora} <= set(validation) & set(result)
    stated = sum(result[f"val_loss/{name}"] * w for name, w in zip(corpora, (3 / 6, 2 / 6, 1 / 6), strict=True))
    assert result["val_loss"] == pytest.approx(stated)


def test_another_weight_is_another_run(corpora, tmp_path):
    with pytest.raises(Interrupted):
        pretrain(config(corpora, tmp_path / "run", stop_after_steps=2))
    with pytest.raises(CheckpointError, match=r"data.mixture: was"):
        pretrain(config(corpora, tmp_path / "run", (3, 2, 2)))
    assert pretrain(config(corpora, tmp_path / "run"))["steps"] == 6  # the control


def test_what_cannot_be_read_so_often_is_refused_before_training(corpora, tmp_path):
    only = {"poems": corpora["poems"]}
    with pytest.raises(DataError, match="mixture: expected a source to read row .* raise max_epochs"):
        pretrain(config(only, tmp_path / "run", (1,), steps=2000, max_epochs=0.5))
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert pretrain(config(only, tmp_path / "run", (1,), steps=3, max_epochs=0.5))["steps"] == 3


def test_a_folder_without_shards_is_refused_by_its_place(corpora, tmp_path):
    with pytest.raises(DataError, match=r"data.mixture\[1\].path: expected a dataset folder with shards, got"):
        pretrain(config(dict(corpora, tales=tmp_path), tmp_path / "run"))


def test_the_tokens_of_real_corpora_are_read_in_the_stated_shares(corpora, tmp_path):
    """Windows are of one length, so that a share of the rows is one of the tokens: 4.5 standard errors at most."""
    from fledge.recipes.pretrain import open_data

    made = config(corpora, tmp_path / "run")
    data = open_data(made, tmp_path)
    assert isinstance(data, Mixture)
    shape = resolve_shape(made.model, data.tokenizer)
    model = initialise(build_model(shape, "cpu"), 1)
    recipe = objective_recipe(made, data, data.tokenizer, model, 32)
    names = [name.split()[0] for index in range(100, 350) for name in recipe.batch(index).sample_ids]
    for name, share in zip(corpora, (3 / 6, 2 / 6, 1 / 6), strict=True):
        off = abs(names.count(name) / len(names) - share) / np.sqrt(share * (1 - share) / len(names))
        assert off < 4.5
        assert abs(names.count(name) / len(names) - share - 0.1) / np.sqrt(0.25 / len(names)) > 4.5  # the control


def test_show_tells_the_plan_of_a_training_file(corpora, tmp_path, capsys):
    pretrain(config(corpora, tmp_path / "run", stages=STAGES, max_epochs=0.1))
    (told,) = [e["sources"] for e in read_log(tmp_path / "run" / "log.jsonl") if e["kind"] == "mixture"]
    shown = show(ShowConfig(str(tmp_path / "run" / "run.yaml")))
    assert shown["mixture"] == told and "reads      tales" in capsys.readouterr().out
    (tmp_path / "plain.yaml").write_text("model: {width: 16, layers: 1, heads: 2, context_tokens: 8}\n")
    assert "mixture" not in show(ShowConfig(str(tmp_path / "plain.yaml")), json=True)  # the control
