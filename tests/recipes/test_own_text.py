"""Students that write what they learn from: trl's divergence on fixed logits, and plain torch over transformers' models
on the texts that a run kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers

from fledge.compress.distill import divergence, lesson, teacher_nats
from fledge.errors import AgreementError, CheckpointError, ConfigError, Interrupted
from fledge.model.config import ShapeConfig
from fledge.model.folder import save_model
from fledge.recipes.config import PretrainConfig, TextDataConfig
from fledge.recipes.distill import distill
from fledge.recipes.distill_config import DistillConfig, OnPolicyConfig, TeacherConfig
from fledge.recipes.pretrain import fresh_recipe, pretrain
from fledge.recipes.sampler import Policy
from fledge.train.config import DropoutConfig, RunConfig, TrainConfig
from tests.align.theirs_gkd import BETAS, FILE, TEMPERATURES, logits
from tests.align.toy import events, letters
from tests.recipes.distilled import documents, steps_of

TRAIN = TrainConfig(steps=6, rows=4, row_tokens=24, learning_rate=3e-3, learning_rate_floor=1.0, weight_decay=0.0,
                    clip_norm=0.0, beta2=0.999, eval_every_steps=0, save_every_steps=0, threads=1)  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The machine's peak, which a run measures for its own progress line, is nothing that these tests look at."""
    monkeypatch.setattr("fledge.device.matmul_peak", lambda device, size=1024: 1e9)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher that has learned to count."""
    folder = tmp_path_factory.mktemp("own")
    lines = [" ".join("0123456789"[(n + k) % 10] * 2 for k in range(8)) + "." for n in range(40)]
    (folder / "text.txt").write_text("\n".join(line.replace("\n", "") for line in lines * 4).replace("\n", " "))
    letters().save(folder / "letters")
    pretrain(PretrainConfig(shape(48, 2), data(folder), replace(TRAIN, steps=60), RunConfig(str(folder / "teacher"))))
    return folder


def shape(width: int, layers: int) -> ShapeConfig:
    return ShapeConfig("llama", width=width, layers=layers, heads=4, kv_heads=2, context_tokens=32)


def data(folder: Path) -> TextDataConfig:
    return TextDataConfig(path=str(folder / "text.txt"), tokenizer=str(folder / "letters"), val_fraction=0.1)


def config_of(place: Path, run: Path, on_policy: dict, train: dict | None = None, **teacher) -> DistillConfig:
    how = {"share": 1.0, "prompt_tokens": 4, "max_tokens": 8, **on_policy}
    return DistillConfig(
        shape(32, 2), data(place), replace(TRAIN, **(train or {})), RunConfig(str(run)),
        teacher=TeacherConfig(str(place / "teacher"), **{"share": 1.0, "temperature": 1.0, "beta": 1.0, **teacher}),
        on_policy=OnPolicyConfig(**how),
    )  # fmt: skip


def texts(run: Path) -> list[list[dict]]:
    """The answers of each rollout."""
    files = sorted((run / "rollouts").glob("*.jsonl"))
    return [[json.loads(line) for line in file.read_text().splitlines()[1:]] for file in files]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("beta", BETAS)
def test_the_divergence_is_trls_and_its_formula(beta, temperature):
    student, teacher, labels = logits()
    there = labels != -100
    wanted = json.loads(FILE.read_text())[f"{beta} {temperature}"]
    p, q = ((one[there] / temperature).softmax(-1) for one in (teacher, student))
    found = divergence(p.log(), q.log(), beta).sum() / there.sum()
    assert float(found) == pytest.approx(wanted, abs=1e-9)
    weight = torch.full((int(there.sum()),), 1 / float(there.sum()))
    said = lesson(teacher[there], temperature)
    told = teacher_nats(student[there], said, weight, temperature, beta) / temperature**2
    assert float(told) == pytest.approx(wanted, abs=1e-6)
    if 0 < beta < 1:
        m = beta * p + (1 - beta) * q
        by_hand = beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1)
        assert float(by_hand.sum() / there.sum()) == pytest.approx(wanted, abs=1e-9)
    others = [json.loads(FILE.read_text())[f"{b} {temperature}"] for b in BETAS if b != beta]
    assert all(abs(float(found) - other) > 1e-3 for other in others)  # the control
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: divergence(p[:3].log(), (s[there][:3] / temperature).log_softmax(-1), beta), (student,)
    )


def test_of_a_lesson_on_some_tokens_the_others_are_one_event_for_every_divergence():
    student, teacher, _ = logits()
    student, teacher = student.flatten(0, 1).float(), teacher.flatten(0, 1).float()
    p, q = teacher.softmax(-1), student.softmax(-1)
    values, ids = p.topk(4, -1)
    mine = q.gather(-1, ids)
    p, q = torch.cat((values, 1 - values.sum(-1, keepdim=True)), -1), torch.cat((mine, 1 - mine.sum(-1)[:, None]), -1)
    told = teacher_nats(student, lesson(teacher, 1.0, 4), torch.ones(10), 1.0, 0.3)
    m = 0.3 * p + 0.7 * q
    wanted = 0.3 * (p * (p / m).log()).sum() + 0.7 * (q * (q / m).log()).sum()
    assert float(told) == pytest.approx(float(wanted), rel=1e-4)


def their_losses(config: DistillConfig, run: Path, scratch: Path, beta: float) -> list[float]:
    """A plain loop of transformers and torch: over the kept texts where they are due, else over the run's text."""
    recipe = fresh_recipe(config, scratch / "data")
    save_model(recipe.model, scratch / "student", letters())
    student, teacher = (
        transformers.AutoModelForCausalLM.from_pretrained(path).eval()
        for path in (scratch / "student", Path(config.teacher.path) / "model")
    )
    optimizer = torch.optim.AdamW(student.parameters(), 3e-3, (0.9, 0.999), 1e-8, weight_decay=0.0)
    rows = [answer for rollout in texts(run) for answer in rollout]
    losses: list[float] = []
    for step in range(TRAIN.steps):
        own = step % 2 == 1  # a share of one half, spread evenly
        if own:
            taken, rows = rows[: TRAIN.rows], rows[TRAIN.rows :]
            parts = [(torch.tensor(a["prompt_ids"] + a["token_ids"]), len(a["prompt_ids"])) for a in taken]
            parts = [(ids[:-1], slice(n - 1, None), ids[1:]) for ids, n in parts]
        else:
            parts = [(ids, slice(0, None), targets) for ids, targets, _ in documents(recipe.batch(step))]
        total, n_tokens = torch.tensor(0.0), 0
        for ids, learnt, targets in parts:
            mine = student(ids[None]).logits[0][learnt].log_softmax(-1)
            with torch.no_grad():
                theirs = teacher(ids[None]).logits[0][learnt].log_softmax(-1)
            middle = torch.log(beta * theirs.exp() + (1 - beta) * mine.exp())
            jsd = beta * F.kl_div(middle, theirs, reduction="sum", log_target=True)
            jsd = jsd + (1 - beta) * F.kl_div(middle, mine, reduction="sum", log_target=True)
            total = total + config.teacher.share * jsd
            if not own:
                total = total + (1 - config.teacher.share) * F.nll_loss(mine, targets[learnt], reduction="sum")
            n_tokens += len(mine)
        (total / n_tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((total / n_tokens).item())
    return losses


def test_losses_of_own_and_given_text_are_those_of_plain_torch(place, tmp_path):
    config = config_of(place, tmp_path / "run", {"share": 0.5, "batches": 3}, share=0.75, beta=0.25)
    distill(config)
    ours = steps_of(tmp_path / "run")
    assert ours == pytest.approx(their_losses(config, tmp_path / "run", tmp_path, 0.25), abs=1e-4)
    wrong = their_losses(config, tmp_path / "run", tmp_path, 0.75)
    assert all(abs(a - b) > 1e-3 for a, b in zip(ours, wrong, strict=True))  # the control: the other way round
    [event] = events(tmp_path / "run", "rollout")
    assert event["batch"] == 1 and event["agreement_largest"] <= 1e-4 and len(texts(tmp_path / "run")[0]) == 12


def reverse_nats(model: Path, teacher: Path, answers: list[dict]) -> float:
    """KL(student ‖ teacher) a token over these texts, by transformers."""
    student, other = (transformers.AutoModelForCausalLM.from_pretrained(path).eval() for path in (model, teacher))
    found = []
    for answer in answers:
        ids, n = torch.tensor(answer["prompt_ids"] + answer["token_ids"]), len(answer["prompt_ids"])
        with torch.no_grad():
            q, p = (one(ids[None, :-1]).logits[0, n - 1 :].log_softmax(-1) for one in (student, other))
        found.append((q.exp() * (q - p)).sum(-1))
    return float(torch.cat(found).mean())


@pytest.mark.slow
def test_on_its_own_text_a_student_comes_nearer_to_its_teacher(place, tmp_path):
    config = config_of(place, tmp_path / "run", {"max_tokens": 12}, {"steps": 40, "rows": 8, "learning_rate": 0.01})
    done = distill(config)
    save_model(fresh_recipe(config, tmp_path / "data").model, tmp_path / "first", letters())
    kept, teacher = texts(tmp_path / "run"), place / "teacher" / "model"
    first = reverse_nats(tmp_path / "first", teacher, kept[0])
    last = reverse_nats(Path(done["model"]), teacher, kept[-1])
    assert last < 0.75 * first
    told = [event["kl"] for event in events(tmp_path / "run", "rollout")]
    assert sum(told[-5:]) < 0.75 * sum(told[:5])
    slow = config_of(place, tmp_path / "slow", {"max_tokens": 12}, {"steps": 3, "rows": 8, "learning_rate": 1e-9})
    done = distill(slow)
    assert reverse_nats(Path(done["model"]), teacher, texts(tmp_path / "slow")[-1]) > 0.8 * first  # the control


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_a_run_stopped_inside_a_rollout_goes_on_to_the_same_bits(place, tmp_path):
    how = {"share": 0.75, "batches": 2}
    distill(config_of(place, tmp_path / "a", how))
    for stop in (2, 3, 0):  # batches 1, 2 and 3, 5 are of rollouts 0 and 1
        config = config_of(place, tmp_path / "b", how, {"stop_after_steps": stop})
        if stop:
            with pytest.raises(Interrupted):
                distill(config)
        else:
            distill(config)
    assert weights(tmp_path / "a") == weights(tmp_path / "b") and steps_of(tmp_path / "a") == steps_of(tmp_path / "b")
    assert texts(tmp_path / "a") == texts(tmp_path / "b") and len(texts(tmp_path / "a")) == 2
    assert [e["batch"] for e in events(tmp_path / "b", "rollout")] == [1, 3]
    broken = config_of(place, tmp_path / "c", how, {"stop_after_steps": 2})
    with pytest.raises(Interrupted):
        distill(broken)
    (tmp_path / "c" / "rollouts" / "00000000.jsonl").unlink()
    with pytest.raises(CheckpointError, match="expected the rollout that this checkpoint goes on from"):
        distill(replace(broken, train=TRAIN))
    kept = (tmp_path / "a" / "rollouts" / "00000001.jsonl").read_text()
    (tmp_path / "c" / "rollouts" / "00000000.jsonl").write_text(kept)  # the control: another text, another model
    distill(replace(broken, train=TRAIN))
    assert weights(tmp_path / "c") != weights(tmp_path / "a")


def test_a_writer_of_stale_weights_is_found(place, tmp_path, monkeypatch):
    refresh, calls = Policy.refresh, []

    def once(policy: Policy, version: str) -> None:
        calls.append(version)
        if len(calls) == 1:
            refresh(policy, version)

    monkeypatch.setattr(Policy, "refresh", once)
    with pytest.raises(AgreementError, match="they don't compute one model, so nothing was learned of it"):
        distill(config_of(place, tmp_path / "run", {}))
    assert len(calls) == 2


def test_prompts_of_a_file_are_continued_and_lessons_on_some_tokens_are_not_kept(place, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"{n}{n} "}) + "\n" for n in range(6)))
    config = config_of(place, tmp_path / "run", {"prompts": str(tmp_path / "prompts.jsonl")}, {"steps": 3}, top_k=5)
    distill(config)
    starts = {tuple(answer["prompt_ids"]) for rollout in texts(tmp_path / "run") for answer in rollout}
    encoded = {tuple([letters().bos_id, *letters().encode(f"{n}{n} ")]) for n in range(6)}
    assert starts == encoded and not list((tmp_path / "run" / "teacher").rglob("*.safetensors"))


def test_what_a_student_cannot_write_beside_is_refused(place, tmp_path):
    config = config_of(place, tmp_path / "run", {})
    with pytest.raises(ConfigError, match="objective: expected causal"):
        replace(config, objective="masked")
    for changed in ({"precision": "bfloat16"}, {"micro_rows": "auto"}, {"dropout": DropoutConfig(attention=0.1)}):
        with pytest.raises(ConfigError, match=f"train.{next(iter(changed))}: expected"):
            replace(config, train=replace(TRAIN, **changed))
    with pytest.raises(ConfigError, match=r"teacher.share: expected a share above 0"):
        replace(config, teacher=replace(config.teacher, share=0.0))
    with pytest.raises(ConfigError, match="prompt and text within 32 tokens"):
        distill(config_of(place, tmp_path / "run", {"max_tokens": 30}))
    with pytest.raises(ConfigError, match="teacher.beta: expected a number from 0 to 1"):
        TeacherConfig(beta=1.5)
    with pytest.raises(ConfigError, match="on_policy.share"):
        OnPolicyConfig(share=2.0)
