"""`fledge align measure`: what a model's answers are worth, and how far it is from the one that it came from.

The same figures for a model of any method (`align dpo`, `ppo`, `grpo`, `sft`, an adapter), by the functions that watch
rollouts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from fledge.engine.request import Sampling
from fledge.errors import ConfigError
from fledge.evals.score import mean_score
from fledge.lineage import check_output_file, make_folder, write_text_durably
from fledge.recipes.prompts import read_prompts
from fledge.recipes.rl_config import MeasureConfig
from fledge.recipes.rollout_file import Answer
from fledge.recipes.rollout_watch import figures_of
from fledge.recipes.rollouts import answers_told
from fledge.recipes.sampler import answers_of, measured, prompted_engine
from fledge.recipes.scoring import Scorer
from fledge.tune.load import load_served, served_tokenizer

ROWS = 64  # answers in one pass


def measure(config: MeasureConfig, json: bool = False) -> dict[str, Any]:
    """Figures of sampled answers: a rollout's (`figures_of`), `reward_interval` at 95 % over prompts, `prompts`,
    `answers`; `kl` and `kl_answer` are of the reference. Raises ConfigError for a reference of another tokenizer."""
    if not config.data:
        raise ConfigError("data: expected prompts as JSON lines; set data=…")
    if config.out is not None:
        check_output_file(config.out)
    engine = prompted_engine(config.model, config.slots)
    reference = config.reference or config.model
    if served_tokenizer(reference).digest != engine.tokenizer.digest:
        raise ConfigError(f"reference: expected a model of {config.model}'s tokenizer, got another in {reference}")
    prompts = read_prompts(config.data, engine.tokenizer, engine.context_tokens - config.max_tokens)
    scorer = Scorer(config.rewards, config.judge, engine.tokenizer)
    sampling = Sampling(max_tokens=config.max_tokens, temperature=config.temperature, stop=config.stop)
    sampled = answers_of(engine, prompts, config.samples, sampling, (config.seed, "measure"))
    ids = [one.prompt.ids for one in sampled], [one.ids for one in sampled]
    ours, theirs = (measured(load_served(path), *ids, config.temperature, ROWS) for path in (config.model, reference))
    answers = answers_told(sampled, ours, theirs, scorer)
    if config.out is not None:
        write_answers(config, answers)
    by_prompt = np.array([answer.reward for answer in answers]).reshape(len(prompts), config.samples).mean(1)
    figures: dict[str, Any] = {**figures_of(answers, config.samples), "prompts": len(prompts), "answers": len(answers)}
    figures["reward_interval"] = mean_score(by_prompt.tolist(), config.seed).interval
    if not json:
        print(told(config.model, figures))
    return figures


def write_answers(config: MeasureConfig, answers: Sequence[Answer]) -> None:
    assert config.out is not None
    make_folder(config.out.parent)
    lines = (json.dumps(asdict(answer), allow_nan=False) + "\n" for answer in answers)
    write_text_durably(config.out, "".join(lines))


def told(model: str, figures: dict[str, Any]) -> str:
    """What people read."""
    between = figures["reward_interval"]
    span = f" ({between[0]:.3f} .. {between[1]:.3f})" if between else ""
    judge = f", judge {figures['judge']:.3f}" if "judge" in figures else ""
    return (
        f"{model}: {figures['answers']:,} answers to {figures['prompts']:,} prompts; reward "
        f"{figures['reward']:.3f}{span}{judge}, {figures['answer_tokens']:.1f} tokens, entropy "
        f"{figures['entropy']:.3f} and distance {figures['kl']:.3f} nats a token"
    )
