"""Layers of a student beside its teacher's: against transformers' attentions, torch's own divergence and squares."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers

from fledge.batch import OneDocument, one_document
from fledge.compress.inner import InnerLessons, layer_pairs
from fledge.errors import ConfigError, Interrupted
from fledge.model.config import ShapeConfig
from fledge.model.folder import load_model, save_model
from fledge.recipes.config import TextDataConfig
from fledge.recipes.distill import distill
from fledge.recipes.distill_config import DistillConfig, TeacherConfig
from fledge.recipes.distill_inner import FILE, WIDEN, with_widening
from fledge.recipes.pretrain import fresh_recipe
from fledge.train.config import DropoutConfig, RunConfig
from tests.data.corrupted import story, wordpiece
from tests.recipes.distilled import SIZES, STEPS, TRAIN, documents, steps_of, teacher_of


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inner")
    (folder / "text.txt").write_text("\n".join(story(n, 20) for n in range(10)), encoding="utf-8")
    return folder


def config_of(place: Path, run: Path, kind: str, sizes: tuple[int, int, int], **teacher) -> DistillConfig:
    """A student of 2 layers, 2 heads and 32 channels; `sizes`: the teacher's width, layers and heads."""
    width, layers, heads = sizes
    folder = place / f"teacher-{kind}-{width}-{layers}-{heads}"
    if not folder.exists():
        teacher_of(kind, place, wordpiece(), width, layers, heads)
    return DistillConfig(
        ShapeConfig("gpt2" if kind == "causal" else "bert", **SIZES),
        TextDataConfig(path=str(place / "text.txt"), tokenizer=str(folder)),
        TRAIN,
        RunConfig(str(run)),
        objective=kind,  # type: ignore[arg-type]
        teacher=TeacherConfig(str(folder), **teacher),
    )


@contextmanager
def heard(model):
    """Of a transformers model: each layer's values [T, D] and what it gives [T, D], by hooks of its own modules."""
    values, states, handles = [], [], []
    causal = hasattr(model, "transformer")
    for layer in model.transformer.h if causal else model.bert.encoder.layer:
        source = layer.attn.c_attn if causal else layer.attention.self.value
        width = layer.attn.embed_dim if causal else source.out_features
        handles.append(source.register_forward_hook(lambda m, i, o, w=width: values.append(o[0][:, -w:])))
        handles.append(layer.register_forward_hook(lambda m, i, o: states.append(o[0] if isinstance(o, tuple) else o)))
    yield values, states
    for handle in handles:
        handle.remove()


def relation(values, heads: int, causal: bool):
    """MiniLM's relation of values [T, D]: [heads, T, T]."""
    v = values.unflatten(-1, (heads, -1)).transpose(0, 1)
    scores = v @ v.transpose(1, 2) / math.sqrt(v.shape[-1])
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1) if causal else torch.zeros(())
    return scores.masked_fill(hidden.bool(), -torch.inf).softmax(-1)


def nats(student, teacher):
    return F.kl_div(student.clamp(min=1e-38).log(), teacher, reduction="sum") / len(teacher)


def their_losses(config: DistillConfig, scratch: Path, pairs) -> list[float]:
    """A plain loop of transformers and torch over the same batches, document by document; `pairs` by hand."""
    kind, lessons = config.objective, config.teacher
    recipe = fresh_recipe(config, scratch / "data")
    save_model(recipe.model, scratch / "student", wordpiece())
    auto = transformers.AutoModelForMaskedLM if kind == "masked" else transformers.AutoModelForCausalLM
    student = auto.from_pretrained(scratch / "student", attn_implementation="eager").eval()
    teacher = auto.from_pretrained(lessons.path, attn_implementation="eager").eval()
    trained, matrix = list(student.parameters()), None
    if lessons.states and teacher.config.hidden_size != 32:
        widen = with_widening(recipe.model, teacher.config.hidden_size, TRAIN.seed).heads[WIDEN]
        matrix = torch.nn.Parameter(widen.weight.detach().clone())
        trained.append(matrix)
    heads = [lessons.relation_heads or model.config.num_attention_heads for model in (student, teacher)]
    optimizer = torch.optim.AdamW(trained, 3e-3, (0.9, 0.999), 1e-8, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        parts = documents(recipe.batch(step))
        learnt, every = sum(float(w.sum()) for *_, w in parts), sum(len(ids) for ids, *_ in parts)
        total = torch.tensor(0.0)
        for ids, targets, weight in parts:
            with heard(student) as (v, x):
                out = student(ids[None], output_attentions=True)
            with torch.no_grad(), heard(teacher) as (v_said, x_said):
                said = teacher(ids[None], output_attentions=True)
            there = weight > 0
            mine, theirs = out.logits[0][there], said.logits[0][there]
            own = F.cross_entropy(mine, targets[there], reduction="sum")
            t = lessons.temperature
            taught = F.kl_div((mine / t).log_softmax(-1), (theirs / t).softmax(-1), reduction="sum") * t * t
            total = total + ((1 - lessons.share) * own + lessons.share * taught) / learnt
            for a, b in pairs:
                one, other = out.attentions[a][0], said.attentions[b][0]
                if lessons.attention and lessons.attention_loss == "kl":
                    total = total + lessons.attention * nats(one, other) / every / len(pairs)
                elif lessons.attention:
                    squares = len(ids) * F.mse_loss(one, other)
                    total = total + lessons.attention * squares / every / len(pairs)
                if lessons.values:
                    rows = [relation(vs, h, kind == "causal") for vs, h in zip((v[a], v_said[b]), heads, strict=True)]
                    total = total + lessons.values * nats(*rows) / every / len(pairs)
                if lessons.states:
                    wide = x[a] if matrix is None else x[a] @ matrix.T
                    total = total + lessons.states * len(ids) * F.mse_loss(wide, x_said[b]) / every / len(pairs)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
    return losses


CASES = [
    ("causal", (32, 4, 2), {"attention": 50.0, "layer_map": "every"}, [(0, 1), (1, 3)]),
    ("masked", (32, 3, 2), {"attention": 40.0, "attention_loss": "mse", "values": 2.0}, [(1, 2)]),  # the last's last
    ("causal", (48, 4, 2), {"share": 0.0, "attention": 2.0, "values": 1.0, "states": 0.5, "layers": (2, 0)},
     [(0, 2), (1, 0)]),
    ("masked", (32, 3, 4), {"values": 1.0, "relation_heads": 8, "states": 0.3, "layers": (-1, 1)}, [(1, 1)]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "sizes", "lessons", "pairs"), CASES[2:3])
def test_losses_of_layers_are_those_of_transformers_attentions(place, tmp_path, kind, sizes, lessons, pairs):
    compared(config_of(place, tmp_path / "run", kind, sizes, **lessons), tmp_path, pairs)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sizes", "lessons", "pairs"), [*CASES[:2], CASES[3]])
def test_losses_of_layers_are_those_of_transformers_attentions_for_each_map(
    place, tmp_path, kind, sizes, lessons, pairs
):
    compared(config_of(place, tmp_path / "run", kind, sizes, **lessons), tmp_path, pairs)


def compared(config: DistillConfig, tmp_path: Path, pairs) -> None:
    distill(config)
    ours = steps_of(tmp_path / "run")
    assert ours == pytest.approx(their_losses(config, tmp_path, pairs), abs=1e-4)
    others = [(a, (b + 1) % 3) for a, b in pairs]
    wrong = their_losses(config, tmp_path, others)
    assert all(abs(a - b) > 1e-3 for a, b in zip(ours, wrong, strict=True))  # the control: another layer of the teacher


def test_the_gradient_of_layers_is_the_slope_of_their_loss(place):
    config = config_of(place, place / "unused", "causal", (48, 4, 2))
    teacher = load_model(config.teacher.path).double().requires_grad_(False)
    student = fresh_recipe(config, place / "slope").model.double()
    with_widening(student, 48, 1).double()
    draw = torch.Generator().manual_seed(1)
    tokens = one_document(torch.randint(50, (2, 7), generator=draw))
    named = [(name, p) for name, p in student.named_parameters() if "output" not in name]
    along = [torch.randn(p.shape, generator=draw, dtype=torch.float64) for _, p in named]
    for lessons in (
        InnerLessons(((0, 1), (1, 3)), "kl", relations=True, states=True),
        InnerLessons(((1, 0),), "mse", relations=True, relation_heads=4),
    ):

        def loss(lessons=lessons):
            heards = []
            for side, model in enumerate((student, teacher)):
                with lessons.listening(model, side) as one:
                    model.hidden(tokens, OneDocument())
                heards.append(one)
            return sum(lessons.terms(*heards, tokens, lambda x: student.heads[WIDEN](x)).values())

        student.zero_grad()
        loss().backward()
        slope = sum(float((p.grad * a).sum()) for (_, p), a in zip(named, along, strict=True) if p.grad is not None)
        with torch.no_grad():
            ends = []
            for step in (1e-6, -2e-6):
                for (_, p), a in zip(named, along, strict=True):
                    p += step * a
                ends.append(float(loss()))
            for (_, p), a in zip(named, along, strict=True):
                p += 1e-6 * a
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)
        assert abs(slope) > 1e-2
        for block in teacher.decoder.blocks():
            assert not block._forward_hooks and not block.attention._forward_pre_hooks  # other passes pay nothing


def test_a_stopped_student_has_its_matrix_again_and_the_published_one_has_none(place, tmp_path):
    lessons = {"attention": 1.0, "states": 0.5, "layer_map": "every"}
    straight = distill(config_of(place, tmp_path / "a", "causal", (48, 4, 2), **lessons))
    config = config_of(place, tmp_path / "b", "causal", (48, 4, 2), **lessons)
    with pytest.raises(Interrupted):
        distill(replace(config, train=replace(TRAIN, stop_after_steps=2)))
    stopped = distill(config)
    files = [Path(result["model"], "model.safetensors").read_bytes() for result in (straight, stopped)]
    assert files[0] == files[1]
    kept = [sorted((tmp_path / run / "checkpoints").glob(f"*/{FILE}"))[-1].read_bytes() for run in "ab"]
    assert kept[0] == kept[1]
    assert not Path(straight["model"], FILE).exists()
    assert load_model(straight["model"]).config.stack.width == 32
    assert steps_of(tmp_path / "a", "loss_states")[-1] < steps_of(tmp_path / "a", "loss_states")[0]


@pytest.mark.slow
def test_rows_in_parts_lose_in_their_layers_what_they_lose_together(place, tmp_path):
    for name, parts in (("a", 0), ("b", 2)):
        config = config_of(place, tmp_path / name, "masked", (32, 3, 2), attention=40.0, values=1.0, states=1.0)
        distill(replace(config, train=replace(TRAIN, micro_rows=parts)))
    assert steps_of(tmp_path / "b") == pytest.approx(steps_of(tmp_path / "a"), abs=1e-5)


def test_layers_that_cannot_be_compared_are_refused_with_what_would_help(place, tmp_path):
    heads = config_of(place, tmp_path / "run", "masked", (32, 3, 4), attention=1.0)
    with pytest.raises(ConfigError, match=r"as many heads as the teacher's 4, got 2; set model.heads=4.*layer 1 and"):
        distill(heads)
    with pytest.raises(ConfigError, match="set teacher.relation_heads to a divisor"):
        distill(replace(heads, teacher=replace(heads.teacher, attention=0.0, values=1.0)))
    with pytest.raises(ConfigError, match="expected a divisor of both 32 and 32"):
        distill(replace(heads, teacher=replace(heads.teacher, attention=0.0, values=1.0, relation_heads=5)))
    with pytest.raises(ConfigError, match="multiple of the student's 2 for every, got 3; name one for each"):
        distill(replace(heads, teacher=replace(heads.teacher, layer_map="every")))
    for changed in ({"checkpoint_blocks": True}, {"compile": "blocks"}, {"dropout": DropoutConfig(layers=0.1)}):
        with pytest.raises(ConfigError, match=f"train.{next(iter(changed))}.*beside teacher.attention"):
            distill(replace(heads, train=replace(TRAIN, **changed)))
    with pytest.raises(ConfigError, match="read with teacher.attention"):
        TeacherConfig(layers=(0, 1))
    with pytest.raises(ConfigError, match="teacher.values: expected at least 0"):
        TeacherConfig(values=-1.0)
    for named in ((0,), (0, 3), (-1, -1)):
        with pytest.raises(ConfigError, match="teacher.layers: expected a layer of the teacher's 3"):
            layer_pairs(2, 3, "last", named)
    assert layer_pairs(2, 6, "every") == ((0, 2), (1, 5)) and layer_pairs(2, 6, "last") == ((1, 5),)
