"""Rollouts: one model in engine and training, what is kept of them, and alarms."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fledge.align.rewards import REWARDS
from fledge.config import load
from fledge.engine.request import Sampling
from fledge.engine.runner import Runner
from fledge.errors import AgreementError, CheckpointError, ConfigError, DataError, Interrupted, NonFiniteError
from fledge.model.folder import save_model
from fledge.nn.linear import PackedLinear
from fledge.nn.native.linear import NativeLinear
from fledge.recipes import rl
from fledge.recipes.prompts import of_rollout, read_prompts
from fledge.recipes.rl_config import AlarmConfig, GrpoRunConfig, PpoRunConfig
from fledge.recipes.rollout_file import read_rollout, write_rollout
from fledge.recipes.rollout_watch import alarms, repetition
from fledge.recipes.sampler import Policy, check_agreement, measured
from fledge.text.chat import Message, renderer_for
from fledge.text.tokenizer import byte_level
from tests.align.toy import DIGITS, config_file, events, letters, tiny, world
from tests.evals.tiny import save_tiny
from tests.recipes.model_of import reward_model

DIGIT, SHORT = {"kind": "regex", "pattern": "[0-9].*"}, {"kind": "length", "tokens": 2, "weight": 0.1}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The machine's peak, which a run measures for its own progress line, is nothing that these tests look at."""
    monkeypatch.setattr("fledge.device.matmul_peak", lambda device, size=1024: 1e9)


def config_of(path: Path, kind: type = GrpoRunConfig) -> Any:
    return load(kind, path)


def sampled(policy: Policy, folder: Path, n: int = 4):
    prompts = read_prompts(folder / "prompts.jsonl", letters(), 20)
    return policy.answers(prompts, n, Sampling(max_tokens=6), ("test",))


def agreement(policy: Policy, folder: Path) -> tuple[float, float]:
    answers = sampled(policy, folder)
    told = measured(policy.model, [a.prompt.ids for a in answers], [a.ids for a in answers], 1.0, 8)
    return check_agreement(answers, [one.plain for one in told])


@torch.no_grad()
def moved(model: torch.nn.Module, seed: int = 5) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_engine_and_training_agree_after_every_change_of_the_weights(tmp_path):
    world(tmp_path)
    model = tiny()
    policy = Policy(model, letters(), (), 16, 8)
    for step in range(3):
        moved(model, step)
        policy.refresh(str(step))
        k3, largest = agreement(policy, tmp_path)
        assert k3 <= 1e-10 and largest <= 1e-5


def test_a_packed_weight_that_was_not_refreshed_is_found_and_named(tmp_path, monkeypatch):
    """The control: the engine forgets one matrix of one layer, by whichever kind of packing."""
    world(tmp_path)
    model = tiny()
    policy = Policy(model, letters(), (), 16, 8)
    moved(model)
    taken = Runner.load_weights

    def forgetful(runner: Runner, state: dict[str, torch.Tensor]) -> None:
        maps = (PackedLinear, NativeLinear)
        stale = next(n for n, m in runner.model.named_modules() if isinstance(m, maps) and "layers.1" in n)
        part = next(p for p in policy.engine.runner.model.get_submodule(stale).places())
        name = f"{stale}.{part}"
        kept = tiny().state_dict()[name]
        taken(runner, {**state, name: kept})

    policy.refresh("whole")
    agreement(policy, tmp_path)
    monkeypatch.setattr(Runner, "load_weights", forgetful)
    policy.refresh("stale")
    with pytest.raises(AgreementError, match=r"prompts.jsonl, line \d+, answer \d, token \d: expected training's"):
        agreement(policy, tmp_path)


def test_one_number_that_is_none_is_no_agreement(tmp_path):
    world(tmp_path)
    answers = sampled(Policy(tiny(), letters(), (), 16, 8), tmp_path, 1)
    told = [np.array(answer.logprobs) for answer in answers]
    assert check_agreement(answers, told) == (0.0, 0.0)
    told[3][0] = math.nan
    with pytest.raises(AgreementError, match="line 4, answer 0, token 0"):
        check_agreement(answers, told)
    told[3][0] = answers[3].logprobs[0] + 2e-4
    with pytest.raises(AgreementError, match=r"within 0\.0001"):
        check_agreement(answers, told)


def test_deterministic_answers_are_told_again_to_the_bit(tmp_path):
    world(tmp_path)
    policy = Policy(tiny(), letters(), (), 16, 8, deterministic=True)
    answers = sampled(policy, tmp_path)
    policy.check_bits(answers)
    done = answers[5].completion
    other = replace(done.logprobs[0], logprob=math.nextafter(done.logprobs[0].logprob, 0))
    answers[5] = replace(answers[5], completion=replace(done, logprobs=(other, *done.logprobs[1:])))
    with pytest.raises(AgreementError, match="to the bit|again in one pass"):
        policy.check_bits(answers)


def test_the_prompts_of_a_rollout_are_a_function_of_seed_and_rollout(tmp_path):
    prompts = read_prompts(world(tmp_path) / "prompts.jsonl", letters(), 20)
    drawn = [[p.row["answer"] for p in of_rollout(prompts, 4, 7, r)] for r in range(5)]
    assert drawn == [[p.row["answer"] for p in of_rollout(prompts, 4, 7, r)] for r in range(5)]
    assert sorted(sum(drawn, [])) == sorted(DIGITS * 2)  # two epochs: each prompt once in both
    assert drawn != [[p.row["answer"] for p in of_rollout(prompts, 4, 8, r)] for r in range(5)]


def test_messages_are_rendered_as_they_are_served(tmp_path):
    path, turn = tmp_path / "chat.jsonl", {"role": "user", "content": "2+2?"}
    path.write_text(json.dumps({"messages": [turn], "answer": 4}) + "\n")
    tokenizer = byte_level()
    (prompt,) = read_prompts(path, tokenizer, 99)
    served = renderer_for(tokenizer).render((Message("user", "2+2?"),), generation_prompt=True)
    assert prompt.ids == tuple(served.ids) and prompt.row["answer"] == 4
    save_tiny(tmp_path / "chat")
    assert set(rl.stops_of(tmp_path / "chat", tokenizer)) >= {tokenizer.end_id, tokenizer.eos_id}


def test_the_distance_is_measured_from_the_reference_that_is_named(tmp_path):
    world(tmp_path)
    other = tiny(9)
    moved(other)
    save_model(other, tmp_path / "other", letters())
    for name, reference in (("own", ""), ("far", str(tmp_path / "other"))):
        train = {"steps": 1}
        rl.grpo(config_of(config_file(tmp_path, name, reference=reference, train=train, rewards=[DIGIT])))
    own, far = (read_rollout(tmp_path / name / "rollouts", 0) for name in ("own", "far"))
    assert own is not None and far is not None and own.key != far.key
    assert abs(own.figures["kl"]) < 1e-12 and far.figures["kl"] > 1e-3
    assert [a.token_ids for a in own.answers] == [a.token_ids for a in far.answers]


def test_a_reference_of_another_tokenizer_is_refused_before_anything_is_written(tmp_path):
    world(tmp_path)
    save_model(tiny(9), tmp_path / "other", byte_level())
    with pytest.raises(ConfigError, match="reference: expected a model of .*'s tokenizer, got another in"):
        rl.grpo(config_of(config_file(tmp_path, reference=str(tmp_path / "other"), rewards=[DIGIT])))
    assert not (tmp_path / "run").exists()


def test_a_weight_that_goes_by_the_rollout_before_needs_it(tmp_path):
    """PPO's controller: without the file the weight would begin again, and other answers follow."""
    world(tmp_path)
    ppo = {"kl": 0.5, "kl_target": 0.01, "kl_horizon": 16}
    settings = {"ppo": ppo, "rewards": [DIGIT], "train": {"steps": 24}}
    first = load(PpoRunConfig, config_file(tmp_path, **settings))
    per_rollout = first.updates
    with pytest.raises(Interrupted):
        rl.ppo(replace(first, train=replace(first.train, stop_after_steps=2 * per_rollout)))
    kept = tmp_path / "run" / "rollouts" / "00000001.jsonl"
    text = kept.read_text()
    kept.unlink()
    with pytest.raises(CheckpointError, match=r"00000001.jsonl: expected the rollout that this checkpoint goes"):
        rl.ppo(first)
    kept.write_text(text)
    assert rl.ppo(first)["steps"] == first.train.steps


def test_prompts_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "prompts.jsonl"
    for row, what in (
        ({"question": "3="}, "line 1: expected prompt"),
        ({"prompt": "1" * 30}, "line 1: expected a prompt of 1 to 20 tokens"),
        ({"messages": [{"role": "owner", "content": "x"}]}, "expected"),
        (3, "line 1: expected an object"),
    ):
        path.write_text(json.dumps(row) + "\n")
        with pytest.raises((DataError, ConfigError), match=what):
            read_prompts(path, letters(), 20)


@pytest.mark.parametrize(
    ("kind", "run", "more"),
    [
        (GrpoRunConfig, rl.grpo, {"grpo": {"kl": 0.05, "entropy": 0.01, "normalise": "sequence"}}),
        (
            GrpoRunConfig,
            rl.grpo,
            {"grpo": {"advantage": "rloo", "kl_in_reward": 0.05}, "rollout": {"temperature": 0.7}},
        ),
        (PpoRunConfig, rl.ppo, {"rollout": {"missing_end_penalty": 1.0}}),
        (GrpoRunConfig, rl.grpo, {"tune": {"method": "lora", "targets": ["all-linear"]}}),
        (PpoRunConfig, rl.ppo, {"tune": {"method": "lora"}, "ppo": {"kl_target": 0.5, "kl_horizon": 64}}),
    ],
    ids=["grpo", "rloo", "ppo", "grpo-lora", "ppo-lora"],
)
def test_a_run_trains_on_what_it_saved_and_every_rollout_agrees(tmp_path, kind, run, more):
    path = config_file(tmp_path, **more)
    result = run(config_of(path, kind))
    told = events(tmp_path / "run", "rollout")
    assert [event["batch"] for event in told] == [0, 8] and result["steps"] == 16
    assert all(event["agreement_k3"] <= 1e-8 and event["agreement_largest"] <= 1e-4 for event in told)
    assert {
        "reward",
        "reward_regex",
        "reward_text",
        "reward_length",
        "entropy",
        "kl",
        "repetition",
        "cut_share",
    } <= told[0].keys()
    first, second = (read_rollout(tmp_path / "run" / "rollouts", n) for n in (0, 1))
    assert first is not None and second is not None and first.weights != second.weights
    assert len(first.answers) == 16 and abs(first.figures["kl"]) < 1e-9 < second.figures["kl"]
    for answer in first.answers:
        assert len({len(answer.token_ids), len(answer.engine), len(answer.old), len(answer.reference)}) == 1
        assert bool(answer.values) == (kind is PpoRunConfig)
        penalty = more.get("rollout", {}).get("missing_end_penalty", 0) * (answer.finish == "length")
        assert answer.reward == pytest.approx(
            answer.parts["regex"] + answer.parts["text"] + 0.1 * answer.parts["length"] - penalty
        )
    assert (tmp_path / "run" / "model" / "value_head.safetensors").exists() == (kind is PpoRunConfig)
    if "kl_target" in more.get("ppo", {}):
        assert second.kl == pytest.approx(0.05 * (1 - 0.2 * 16 / 64))


def test_accumulated_over_micro_batches_a_step_is_the_same(tmp_path):
    """Sums and divisors that are known before: answers of different lengths, each loss and weight within rounding."""
    for normalise in ("token", "sequence", "constant"):
        found = {}
        for rows in (4, 1):
            name, settings = f"{normalise}{rows}", {"normalise": normalise, "kl": 0.1, "entropy": 0.01}
            train = {"steps": 2, "micro_rows": rows}
            rl.grpo(config_of(config_file(tmp_path, name, grpo=settings, train=train, rewards=[DIGIT, SHORT])))
            found[rows] = [event["loss"] for event in events(tmp_path / name, "step")]
        assert found[4] == pytest.approx(found[1], abs=1e-6) and any(found[4])


def test_a_rollout_that_is_gone_stops_a_run_that_was_learning_from_it(tmp_path):
    with pytest.raises(Interrupted):
        rl.grpo(config_of(config_file(tmp_path, train={"stop_after_steps": 6})))
    path = config_file(tmp_path)
    kept = tmp_path / "run" / "rollouts" / "00000000.jsonl"
    text = kept.read_text()
    kept.write_text(text.replace('"reward": ', '"reward": 1', 1))
    with pytest.raises(CheckpointError, match=r"00000000.jsonl: expected the rollout that this checkpoint"):
        rl.grpo(config_of(path))
    kept.write_text(text)
    assert rl.grpo(config_of(path))["steps"] == 16


def test_a_rollout_of_other_weights_is_made_again(tmp_path):
    """A folder that holds a rollout which doesn't belong to the weights of now, as after a change of machine."""
    path = config_file(tmp_path, train={"steps": 2})
    rl.grpo(config_of(path))
    kept = tmp_path / "run" / "rollouts" / "00000000.jsonl"
    rollout, other = read_rollout(kept.parent, 0), tmp_path / "other" / "rollouts"
    assert rollout is not None
    write_rollout(other, replace(rollout, weights="others"))
    rl.grpo(config_of(config_file(tmp_path, "other", train={"steps": 2})))
    assert (other / kept.name).read_bytes() == kept.read_bytes()


def test_a_reward_model_rewards_and_a_judge_only_judges(tmp_path):
    world(tmp_path)
    reward_model(tmp_path / "reward", tiny(7), letters())
    model = {"kind": "model", "path": str(tmp_path / "reward")}
    path = config_file(tmp_path, rewards=[model], judge=[{"kind": "text"}], train={"steps": 2})
    result = rl.grpo(config_of(path))
    (told,) = events(tmp_path / "run", "rollout")
    assert "judge" in told and result["val_model"] == result["val_reward"] and "val_judge" in result
    rollout = read_rollout(tmp_path / "run" / "rollouts", 0)
    assert rollout is not None and len({answer.reward for answer in rollout.answers}) > 4
    with pytest.raises(ConfigError, match="expected a reward model"):
        rl.grpo(config_of(config_file(tmp_path, rewards=[{**model, "path": str(tmp_path / "base")}])))


def history(reward: float, judge: float, kl: float = 0.1) -> list[dict[str, float]]:
    """40 rollouts with noise whose reward and judge go this far."""
    noise = np.random.default_rng(1).normal(size=(40, 2)) * 0.05
    return [
        {"reward": reward * n / 39 + noise[n, 0], "judge": judge * n / 39 + noise[n, 1], "kl": kl} for n in range(40)
    ]


def test_a_reward_that_rises_while_the_judge_falls_is_an_alarm_and_nothing_else_is():
    config = AlarmConfig(kl=0.5)
    assert "what is rewarded is not what is wanted" in alarms(history(1, -1), config)[0]
    for quiet in (history(1, 1), history(1, 0), history(0, -1), history(0, 0), history(1, -1)[:10]):
        assert alarms(quiet, config) == []
    assert "nats a token from the reference" in alarms(history(0, 0, kl=0.6), config)[0]
    assert alarms([{"reward": 1.0, "kl": 0.1}] * 40, config) == []


def test_an_alarm_stands_in_the_log_once_with_its_rollout(tmp_path, capsys):
    alarm = {"window": 2, "kl": 1e-9}
    path = config_file(tmp_path, alarm=alarm, train={"steps": 24}, rewards=[DIGIT], judge=[{"kind": "text"}])
    rl.grpo(config_of(path))
    told = events(tmp_path / "run", "alarm")
    assert [event["rollout"] for event in told] == [1, 2]
    assert "beyond 1e-09" in told[0]["text"] and "warning: rollout 1: the policy is" in capsys.readouterr().err


def test_processes_that_share_weights_are_refused(tmp_path, monkeypatch):
    @contextmanager
    def of_two(config: Any) -> Iterator[Any]:
        yield SimpleNamespace(alone=False)

    monkeypatch.setattr(rl, "in_run_folder", of_two)
    for parallel, said in (({"shard": 2}, "shard_stage: expected 1 to learn from rollouts"), ({"pipe": 2}, "pipe")):
        with pytest.raises(ConfigError, match=f"train.parallel.{said}"):
            rl.grpo(config_of(config_file(tmp_path, train={"parallel": parallel})))


def test_a_reward_that_is_no_number_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(REWARDS, "text", lambda *_: math.nan)
    with pytest.raises(
        NonFiniteError, match=r"prompts.jsonl, line \d+: expected a finite reward of kind text, got nan"
    ):
        rl.grpo(config_of(config_file(tmp_path, rewards=[{"kind": "text"}])))


def test_repetition_is_the_share_of_runs_that_were_there_before():
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([1] * 8) == pytest.approx(1 - 1 / 5)
    assert repetition([1, 2]) == 0.0


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"train": {"rows": 5}}, "train.rows: expected a divisor of a rollout's 16"),
        ({"train": {"precision": "bfloat16"}}, "train.precision: expected float32"),
        ({"train": {"micro_rows": "auto"}}, "train.micro_rows: expected a number"),
        ({"tune": {"method": "lora", "dropout": 0.1}}, "train.dropout: expected none"),
        ({"rollout": {"samples": 1, "prompts": 16}}, "rollout.samples: expected at least 2"),
        ({"rollout": {"max_tokens": 32}}, "rollout.max_tokens: expected less than the context of 32"),
        ({"rewards": []}, "rewards: expected at least one"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_by_name(tmp_path, more, what):
    with pytest.raises(ConfigError, match=what):
        rl.grpo(config_of(config_file(tmp_path, **more)))
