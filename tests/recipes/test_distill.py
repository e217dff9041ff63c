"""Students against a plain loop over transformers' student and teacher with torch's divergence and cosine losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers

from fledge.compress.distill import hidden_distance, lesson, teacher_nats
from fledge.data.masking import MaskingConfig
from fledge.errors import ConfigError, Interrupted
from fledge.model.config import ShapeConfig
from fledge.model.folder import save_model
from fledge.recipes.config import TextDataConfig
from fledge.recipes.distill import DistillRecipe, distill
from fledge.recipes.distill_config import DistillConfig, TeacherConfig
from fledge.recipes.pretrain import fresh_recipe
from fledge.train.config import RunConfig
from tests.data.corrupted import story, wordpiece
from tests.recipes.distilled import SIZES, STEPS, TRAIN, documents, steps_of, teacher_of


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill")
    (folder / "text.txt").write_text("\n".join(story(n, 20) for n in range(10)), encoding="utf-8")
    for kind in ("causal", "masked"):
        teacher_of(kind, folder, wordpiece())
    return folder


def config_of(place: Path, run: Path, kind: str, **teacher) -> DistillConfig:
    folder = place / f"teacher-{kind}-32-3-2"
    return DistillConfig(
        ShapeConfig("gpt2" if kind == "causal" else "bert", **SIZES),
        TextDataConfig(path=str(place / "text.txt"), tokenizer=str(folder)),
        TRAIN,
        RunConfig(str(run)),
        objective=kind,  # type: ignore[arg-type]
        masking=MaskingConfig(rate=0.3),
        teacher=TeacherConfig(str(folder), **teacher),
    )


def their_losses(config: DistillConfig, scratch: Path) -> list[float]:
    """A plain loop of transformers and torch over the same batches, document by document."""
    kind, lessons = config.objective, config.teacher
    recipe = fresh_recipe(config, scratch / "data")
    save_model(recipe.model, scratch / "student", wordpiece())
    auto = transformers.AutoModelForMaskedLM if kind == "masked" else transformers.AutoModelForCausalLM
    student = auto.from_pretrained(scratch / "student").eval()
    teacher = auto.from_pretrained(lessons.path).eval()
    optimizer = torch.optim.AdamW(student.parameters(), 3e-3, (0.9, 0.999), 1e-8, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        batch = recipe.batch(step)
        parts = documents(batch)
        n = sum(float(weight.sum()) for _, _, weight in parts)
        total = torch.tensor(0.0)
        for ids, targets, weight in parts:
            there = weight > 0
            out = student(ids[None], output_hidden_states=True)
            with torch.no_grad():
                said = teacher(ids[None], output_hidden_states=True)
            mine, theirs = out.logits[0][there], said.logits[0][there]
            total = total + (1 - lessons.share) * F.cross_entropy(mine, targets[there], reduction="sum")
            t = lessons.temperature
            divergence = F.kl_div(
                F.log_softmax(mine / t, -1), F.log_softmax(theirs / t, -1), reduction="sum", log_target=True
            )
            total = total + lessons.share * t * t * divergence
            if lessons.hidden:
                a, b = out.hidden_states[-1][0][there], said.hidden_states[-1][0][there]
                total = total + lessons.hidden * F.cosine_embedding_loss(a, b, torch.ones(len(a)), reduction="sum")
        (total / n).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((total / n).item())
    return losses


@pytest.mark.parametrize(
    ("kind", "lessons"),
    [
        ("causal", {"share": 0.7, "temperature": 3.0}),
        ("causal", {"share": 1.0, "hidden": 0.5}),
        ("masked", {"share": 0.5, "hidden": 0.2}),  # DistilBERT's three losses
    ],
)
def test_losses_step_by_step_are_those_of_torchs_own_losses(place, tmp_path, kind, lessons):
    config = config_of(place, tmp_path / "run", kind, **lessons)
    distill(config)
    ours = steps_of(tmp_path / "run")
    assert ours == pytest.approx(their_losses(config, tmp_path), abs=1e-4)
    assert abs(ours[-1] - ours[0]) > 1e-2  # the control
    alone = replace(
        config, run=RunConfig(str(tmp_path / "alone")), teacher=replace(config.teacher, share=0.0, hidden=0.0)
    )
    distill(alone)
    assert abs(steps_of(tmp_path / "alone")[0] - ours[0]) > 1e-2  # the teacher counts


def test_a_lesson_on_some_tokens_is_the_divergence_with_all_others_as_one():
    draw = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(6, 20, generator=draw), 2 * torch.randn(6, 20, generator=draw)
    weight = torch.rand(6, generator=draw)
    t = 1.7
    p, q = torch.softmax(teacher.double() / t, -1), torch.softmax(student.double() / t, -1)
    full = (weight.double() * (p * (p / q).log()).sum(-1)).sum() * t * t
    assert float(teacher_nats(student, lesson(teacher, t), weight, t)) == pytest.approx(float(full), rel=1e-5)
    values, ids = p.topk(4, -1)
    mine = q.gather(-1, ids)
    rest_p, rest_q = 1 - values.sum(-1), 1 - mine.sum(-1)
    some = (values * (values / mine).log()).sum(-1) + rest_p * (rest_p / rest_q).log()
    wanted = (weight.double() * some).sum() * t * t
    assert float(teacher_nats(student, lesson(teacher, t, 4), weight, t)) == pytest.approx(float(wanted), rel=1e-5)
    assert float(wanted) < float(full)
    assert lesson(teacher, t, 19).ids is None  # all but one tell all
    assert float(teacher_nats(teacher, lesson(teacher, t, 4), weight, t)) == pytest.approx(0.0, abs=1e-6)
    same = hidden_distance(student, student * 3, weight)
    assert float(same) == pytest.approx(0.0, abs=1e-6) and float(hidden_distance(student, -student, weight)) > 1


def test_what_the_teacher_said_is_kept_and_read_again_to_the_same_bits(place, tmp_path, monkeypatch):
    config = config_of(place, tmp_path / "a", "causal", top_k=8)
    first = distill(config)
    n_said = len(list((tmp_path / "a" / "teacher").rglob("*.safetensors")))
    assert n_said == STEPS
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "teacher").rename(tmp_path / "b" / "teacher")
    monkeypatch.setattr(DistillRecipe, "teacher", None)  # nobody to ask
    asked = []
    monkeypatch.setattr("fledge.recipes.distill.lesson", lambda *a: asked.append(a) or lesson(*a))
    second = distill(replace(config, run=RunConfig(str(tmp_path / "b"))))
    files = [Path(result["model"], "model.safetensors").read_bytes() for result in (first, second)]
    assert files[0] == files[1] and not asked


def test_a_stopped_student_goes_on_to_the_same_bits(place, tmp_path):
    straight = distill(config_of(place, tmp_path / "a", "masked", hidden=0.3))
    config = config_of(place, tmp_path / "b", "masked", hidden=0.3)
    with pytest.raises(Interrupted):
        distill(replace(config, train=replace(TRAIN, stop_after_steps=2)))
    stopped = distill(config)
    files = [Path(result["model"], "model.safetensors").read_bytes() for result in (straight, stopped)]
    assert files[0] == files[1]
    parts = distill(replace(config_of(place, tmp_path / "c", "masked", hidden=0.3), train=replace(TRAIN, micro_rows=2)))
    assert steps_of(tmp_path / "c") == pytest.approx(steps_of(tmp_path / "a"), abs=1e-5) and parts["steps"] == STEPS


def test_teachers_that_cannot_teach_are_refused(place, tmp_path):
    config = config_of(place, tmp_path / "run", "causal")
    with pytest.raises(ConfigError, match="teacher.path: expected a model folder"):
        distill(replace(config, teacher=TeacherConfig()))
    with pytest.raises(ConfigError, match="expected the student's tokenizer"):
        distill(replace(config, data=replace(config.data, tokenizer="bytes")))
    with pytest.raises(ConfigError, match="expected a model of the student's kind"):
        distill(replace(config, teacher=TeacherConfig(str(place / "teacher-masked-32-3-2"))))
    wide = teacher_of("causal", tmp_path, wordpiece(), 48)
    with pytest.raises(ConfigError, match="expected states of one width"):
        distill(replace(config, teacher=TeacherConfig(str(wide), hidden=1.0)))
    with pytest.raises(ConfigError, match="expected causal or masked"):
        distill(replace(config, objective="prefix"))
