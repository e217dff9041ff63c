"""Sharded checkpoints: written by real gloo ranks that hold DTensors, read whole, in parts and by others; damage."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from fledge import lineage
from fledge.errors import CheckpointError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families import family
from fledge.model.folder import load_model, save_description, save_model
from fledge.model.init import initialise
from fledge.model.safetensors_file import SafetensorsFile
from fledge.model.transformer import Transformer, build
from fledge.optim.part import ALL, Part
from fledge.parallel.parts import weight_parts
from fledge.train import sharded
from fledge.train.checkpointing import State, newest_valid, prune, read_state, save_checkpoint
from fledge.train.ranks import Alone, GlooRanks
from fledge.train.restore import SavedState
from fledge.train.sharded import save_sharded
from fledge.train.slices import Slice, SlicedTensors, cut, cut_box, index_of, tiles, write_slices
from tests.train.ranks_at_work import at_work, errors
from tests.train.saved import local_slices, read_optimizer

# GPT-2 has maps that a file holds fused and transposed, LLaMA's are the same there and here
SHAPES = {
    "gpt2": ShapeConfig("gpt2", width=12, layers=2, heads=2, context_tokens=10, vocab_size=29),
    "llama": ShapeConfig("llama", width=16, layers=1, heads=2, kv_heads=1, context_tokens=8, vocab_size=21),
}


def whole_model(name: str) -> Transformer:
    return initialise(build(family(name).build(SHAPES[name]), "cpu"), 1)


def whole_moments(model: nn.Module) -> dict[str, Tensor]:
    """Numbers that differ everywhere, in the shapes of AdamW's state."""
    found: dict[str, Tensor] = {}
    for index, (name, p) in enumerate(model.named_parameters()):
        found[f"exp_avg/{name}"] = torch.arange(p.numel(), dtype=torch.float32).reshape(p.shape) + index
        found[f"step/{name}"] = torch.tensor([float(index)])
    return found


def describe(config: ModelConfig):
    return lambda folder: save_description(build(config), torch.float32, folder)


def save_whole(root: Path, name: str) -> Path:
    """What one process writes: the reference."""
    model = whole_model(name)
    return save_checkpoint(
        root, State(step=3), lambda folder: save_model(model, folder, card=False), whole_moments(model)
    )


def new_ranks() -> GlooRanks:
    return GlooRanks(None, 60)


def work_sharded(folder: Path, meshes: tuple[tuple[int, ...], ...]) -> None:
    """On each rank: both models by each mesh, sharded over its last dimension, replicated or sharded over the first."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    for name in SHAPES:
        for mesh_shape in meshes:
            model, moments = whole_model(name), whole_moments(whole_model(name))
            mesh = init_device_mesh("cpu", mesh_shape)
            if len(mesh_shape) == 1:
                fully_shard(model, mesh=mesh)
                placements = [Shard(0)]
            else:  # rows over the one dimension of the mesh, columns over the other; vectors over the second only
                placements = [Shard(1), Shard(0)]
                for key, p in list(model.named_parameters()):
                    owner, _, last = key.rpartition(".")
                    placed = placements if p.dim() > 1 else [Replicate(), Shard(0)]
                    setattr(model.get_submodule(owner), last, nn.Parameter(distribute_tensor(p.detach(), mesh, placed)))
            weights = dict(model.named_parameters())
            assert all(isinstance(p, DTensor) for p in weights.values())
            parts = {
                key: t
                if key.startswith("step/")
                else distribute_tensor(t, mesh, weights[key.partition("/")[2]].placements)
                for key, t in moments.items()
            }
            ranks = new_ranks()
            root = folder / f"{name}-{'x'.join(map(str, mesh_shape))}"
            config = model.config
            w, m = (local_slices(tensors, ranks.rank) for tensors in (weights, parts))
            save_sharded(root, State(step=3), config, w, m, describe(config), ranks)
    save_trained(folder / "trained", fully_shard)


def save_trained(folder: Path, fully_shard) -> None:
    """A module trained for two steps under fully sharded data parallelism: torch's own AdamW state, in slices."""
    ranks = new_ranks()
    model, optimizer = trained(lambda model: [fully_shard(model[0]), fully_shard(model[2]), fully_shard(model)])
    state = optimizer_tensors(model, optimizer)
    folder.mkdir(exist_ok=True)
    rows = write_slices(folder, "optimizer", ranks.rank + 1, ranks.size, local_slices(state, ranks.rank))
    everyone = ranks.exchange(rows)
    if ranks.rank == 0:
        index = index_of([row for rows in everyone for row in rows], ranks.size)
        (folder / "optimizer.safetensors.index.json").write_text(json.dumps(index))


def trained(shard) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 11), nn.Tanh(), nn.Linear(11, 3))
    shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, foreach=False)
    for step in range(2):
        model(torch.arange(12.0).reshape(2, 6) + step).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    return {
        f"{kind}/{name}": optimizer.state[p][kind]
        for name, p in model.named_parameters()
        for kind in ("exp_avg", "exp_avg_sq", "step")
    } | {f"weight/{name}": p for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    codes = at_work(work_sharded, 4, folder, ((4,), (2, 2)))
    assert codes == [0, 0, 0, 0], errors(folder)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    assert at_work(work_sharded, 2, folder, ((2,),)) == [0, 0], errors(folder)
    return folder


def same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def check_same(folder: Path, reference: Path) -> None:
    assert read_state(folder) == read_state(reference)
    assert same_tensors(read_optimizer(folder), read_optimizer(reference))
    ours, theirs = load_model(folder), load_model(reference)
    assert same_tensors(dict(ours.named_parameters()), dict(theirs.named_parameters()))


@pytest.mark.parametrize("mesh", ["4", "2x2"])
@pytest.mark.parametrize("name", SHAPES)
def test_what_four_ranks_wrote_is_what_one_process_writes(four, tmp_path, name, mesh):
    folder, _ = newest_valid(four / f"{name}-{mesh}") or pytest.fail("none")
    check_same(folder, save_whole(tmp_path, name))
    assert len(list(folder.glob("optimizer-0000?-of-00004.safetensors"))) == 4
    assert not list(folder.glob("weights*")) and not list(folder.parent.glob(".*"))
    sizes = [path.stat().st_size for path in folder.glob("optimizer-*.safetensors")]
    assert max(sizes) < sum(sizes) / 2


@pytest.mark.parametrize("name", SHAPES)
def test_two_ranks_write_the_same_as_four(two, four, name):
    check_same(two / f"{name}-2" / "step-00000003", four / f"{name}-4" / "step-00000003")


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_reads_the_folder_of_four_ranks(four, name):
    folder = four / f"{name}-4" / "step-00000003"
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    ids = torch.tensor([[1, 2, 3, 4]])
    reference = whole_model(name).eval()
    from fledge.batch import OneDocument, one_document

    with torch.no_grad():
        wanted = reference(one_document(ids), OneDocument())
        assert torch.allclose(model(ids).logits, wanted, atol=1e-5)


def test_the_state_of_training_under_full_sharding_is_that_of_plain_training(four, two):
    model, optimizer = trained(lambda model: None)
    wanted = optimizer_tensors(model, optimizer)
    for folder in (four, two):
        with SlicedTensors(folder / "trained", "optimizer") as sliced:
            assert sliced.entries.keys() == wanted.keys()
            for name, tensor in wanted.items():
                assert torch.allclose(sliced.read(name), tensor.detach(), atol=1e-6), name


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("n_ranks", [1, 2, 3, 5])
def test_any_other_number_of_ranks_reads_just_its_parts(four, name, n_ranks):
    folder = four / f"{name}-2x2" / "step-00000003"
    model = whole_model(name)
    moments, weights = whole_moments(model), {key: p.detach() for key, p in model.named_parameters()}
    for number in range(1, n_ranks + 1):
        with SlicedTensors(folder, "optimizer") as sliced:
            for one in cut(moments, number, n_ranks):
                assert torch.equal(sliced.read_part(one.name, *one.box), one.tensor)
        boxes = {key: cut_box(tuple(p.shape), number, n_ranks) for key, p in weights.items()}
        parts = dict(weight_parts(folder, {key: box for key, box in boxes.items() if box is not None}))
        assert same_tensors(parts, {one.name: one.tensor for one in cut(weights, number, n_ranks)})


def test_a_reader_of_a_part_reads_that_part_alone(four, monkeypatch):
    taken: list[int] = []
    real = SafetensorsFile._read_at

    def counted(self, position: int, into: Tensor, name: str) -> None:
        taken.append(into.numel() * into.dtype.itemsize)
        real(self, position, into, name)

    class Fourth(Part):
        def box(self, key: str, shape: tuple[int, ...]):
            return cut_box(shape, 2, 4) or ((0,) * len(shape), (0,) * len(shape))

    monkeypatch.setattr(SafetensorsFile, "_read_at", counted)
    folder = four / "llama-4" / "step-00000003"
    shapes = {name: tuple(p.shape) for name, p in whole_model("llama").named_parameters()}
    n_bytes = {}
    for part in (Fourth(), ALL):
        taken.clear()
        with SavedState(folder, part) as saved:
            assert all(saved[key].shape == part.box(key, entry.shape)[1] for key, entry in saved.sliced.entries.items())
        dict(weight_parts(folder, {name: part.box(name, shape) for name, shape in shapes.items()}))
        n_bytes[part] = sum(taken)
    fourth, whole = n_bytes.values()
    assert whole == 2 * sum(4 * math.prod(shape) for shape in shapes.values()) + 4 * len(shapes)  # the control
    assert fourth < 0.27 * whole


def test_a_padded_vocabulary_is_cut_in_shards_as_in_one_file(tmp_path):
    from fledge.model.resize import resize

    model = resize(whole_model("llama"), 21, multiple=8)
    weights = [Slice(key, tuple(p.shape), (0,) * p.dim(), p.detach()) for key, p in model.named_parameters()]
    folder = save_sharded(tmp_path / "a", State(step=3), model.config, weights, [], describe(model.config), Alone())
    assert same_tensors(dict(load_model(folder).named_parameters()), dict(whole_model("llama").named_parameters()))


# ---- damage


@pytest.fixture
def copy(four, tmp_path) -> Path:
    shutil.copytree(four / "llama-4", tmp_path / "checkpoints")
    return tmp_path / "checkpoints" / "step-00000003"


def test_a_missing_a_damaged_and_an_extra_shard_are_named(copy):
    shard = copy / "optimizer-00003-of-00004.safetensors"
    kept = shard.read_bytes()
    for break_it, words in (
        (lambda: shard.unlink(), "optimizer-00003-of-00004.safetensors: missing"),
        (lambda: shard.write_bytes(kept[:-1] + b"x"), "optimizer-00003-of-00004.safetensors: expected SHA-256"),
        (lambda: shard.write_bytes(kept[:-9]), "optimizer-00003-of-00004.safetensors: expected SHA-256"),
        (
            lambda: shutil.copy(shard, copy / "optimizer-00005-of-00005.safetensors"),
            "00005-of-00005.safetensors: a file",
        ),
        (lambda: shutil.copy(shard, copy / "model-00009-of-00009.safetensors"), "00009-of-00009.safetensors: a file"),
    ):
        read_state(copy)
        break_it()
        with pytest.raises(CheckpointError, match=words):
            read_state(copy)
        with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
            newest_valid(copy.parent)
        for extra in copy.glob("*-0000[59]-of*.safetensors"):
            extra.unlink()
        shard.write_bytes(kept)


def test_a_reader_without_the_card_names_a_shard_too(copy):
    """Whoever opens the slices alone is told the same."""
    (copy / "card.json").unlink()
    shard = copy / "optimizer-00002-of-00004.safetensors"
    kept = shard.read_bytes()
    shutil.copy(copy / "optimizer-00001-of-00004.safetensors", shard)
    with pytest.raises(CheckpointError, match="optimizer-00002-of-00004.safetensors: holds other slices than"):
        read_optimizer(copy)
    shard.unlink()
    with pytest.raises(CheckpointError, match="optimizer-00002-of-00004.safetensors: missing shard; expected 4"):
        read_optimizer(copy)
    shard.write_bytes(kept)
    shutil.copy(shard, copy / "optimizer-00002-of-00003.safetensors")
    with pytest.raises(CheckpointError, match="optimizer-00002-of-00003.safetensors: a shard that .* knows nothing of"):
        read_optimizer(copy)
    (copy / "optimizer-00002-of-00003.safetensors").unlink()
    read_optimizer(copy)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda index: index.update(format=99), "expected format 1, got 99"),
        (lambda index: index.pop("tensors"), "damaged index"),
        (lambda index: index["tensors"]["a"]["slices"].pop(), "a: its slices are not all of its"),
        (lambda index: index["tensors"]["a"]["slices"].append([1, [0], [2]]), "a: its slices are not all of its"),
        (lambda index: index["tensors"]["a"]["slices"][0].__setitem__(0, 9), "expected slices in files 1 to 2"),
        (lambda index: index["tensors"]["a"]["slices"][0].__setitem__(1, [-1]), "damaged index"),
        (lambda index: index["tensors"]["a"].update(dtype="F99"), "damaged index"),
        (lambda index: index.update(files="../2"), "damaged index"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, change, words):
    tensors = {"a": torch.arange(5.0), "b": torch.ones(())}
    rows = [row for n in (1, 2) for row in write_slices(tmp_path, "optimizer", n, 2, cut(tensors, n, 2))]
    index = index_of(rows, 2)
    path = tmp_path / "optimizer.safetensors.index.json"
    path.write_text(json.dumps(index))
    assert same_tensors(read_optimizer(tmp_path), tensors)
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=words):
        read_optimizer(tmp_path)


def test_slices_must_be_all_of_a_tensor_once(tmp_path):
    whole, half = ((0, 0), (4, 4)), ((0, 0), (2, 4))
    assert tiles([whole], (4, 4)) and tiles([half, ((2, 0), (2, 1)), ((2, 1), (2, 3))], (4, 4))
    for boxes in ([], [half], [whole, half], [half, ((1, 0), (3, 4))], [half, ((2, 0), (2, 3))], [((0,), (4,))]):
        assert not tiles(boxes, (4, 4))
    rows = [["a", "F32", [4], 1, [0], [2]], ["a", "F32", [5], 2, [2], [2]]]
    with pytest.raises(CheckpointError, match="a: expected F32"):
        index_of(rows, 2)
    twice = [Slice("a", (4,), (at,), torch.ones(2)) for at in (0, 2)]
    with pytest.raises(CheckpointError, match="a: expected one slice"):
        write_slices(tmp_path, "optimizer", 1, 1, twice)


# ---- ranks that fail


def work_failing(folder: Path, how: str) -> None:
    """A good checkpoint, then one in which rank 1 fails."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, ranks = whole_model("llama"), new_ranks()
    fully_shard(model, mesh=init_device_mesh("cpu", (ranks.size,)))
    weights = local_slices(dict(model.named_parameters()), ranks.rank)
    arguments = (model.config, weights, [], describe(model.config), ranks)
    save_sharded(folder / "checkpoints", State(step=1), *arguments)
    if ranks.rank == 1 and how == "dies":
        sharded.write_slices = lambda *_: os._exit(9)
    elif ranks.rank == 1 and how == "disk":
        sharded.write_slices = full_disk
    elif ranks.rank == 1:
        weights[0].tensor.view(-1)[0] = float("nan")
    save_sharded(folder / "checkpoints", State(step=2), *arguments)


def full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "how, codes, words",
    [
        ("dies", [1, 9, 1], "closed by peer|reset by peer"),
        ("disk", [1, 1], r"rank 1: .*step-00000002: the disk is full"),
        pytest.param("nan", [1, 1], "rank 1: .*: not finite", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_fails_stops_all_and_leaves_no_folder(tmp_path, how, codes, words):
    assert at_work(work_failing, len(codes), tmp_path, how, silence_seconds=30) == codes, errors(tmp_path)
    for path in tmp_path.glob("rank-*.error"):
        message, kind, *_ = path.read_text().splitlines()
        assert kind == {"nan": "NonFiniteError", "disk": "CheckpointError", "dies": "RuntimeError"}[how]
        assert re.search(words, message), message
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000001"]
    _, state = newest_valid(tmp_path / "checkpoints") or pytest.fail("none")
    assert state.step == 1


def test_old_sharded_checkpoints_are_pruned_like_any(tmp_path):
    model = whole_model("llama")
    weights = [Slice(key, tuple(p.shape), (0,) * p.dim(), p.detach()) for key, p in model.named_parameters()]
    for step in (1, 2, 3):
        save_sharded(tmp_path, State(step=step), model.config, weights, [], describe(model.config), Alone())
        prune(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    assert lineage.read_card(tmp_path / "step-00000003")["facts"] == {"ranks": 1}
