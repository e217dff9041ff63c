"""`fledge align best-of`: rejection sampling, from prompts and rewards to conversations to tune on.

Source: best-of-n of Stiennon et al. 2020 (arXiv 2009.01325); tuning on what was kept, as Llama 2 (arXiv 2307.09288)
in §3.2.3.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fledge.engine.request import Sampling
from fledge.errors import ConfigError, DataError
from fledge.lineage import check_output_file, make_folder, write_text_durably
from fledge.log import say
from fledge.recipes.prompts import read_prompts
from fledge.recipes.rl_config import BestOfConfig
from fledge.recipes.sampler import Sampled, answers_of, prompted_engine
from fledge.recipes.scoring import Scorer


def best_of(config: BestOfConfig) -> dict[str, Any]:
    """Write the best of `samples` answers to each prompt as conversations (`fledge sft` reads them). Gives `prompts`,
    `written`, and the mean rewards of all answers (`reward_all`) and of each prompt's best (`reward_best`).

    Raises DataError, and writes nothing, where no answer is kept."""
    if not config.data:
        raise ConfigError("data: expected prompts as JSON lines; set data=…")
    if config.out.resolve() == Path(config.data).resolve():
        raise ConfigError(f"out: expected another file than data, got {config.out} for both; choose another")
    check_output_file(config.out)
    engine = prompted_engine(config.model, config.slots)
    prompts = read_prompts(config.data, engine.tokenizer, engine.context_tokens - config.max_tokens)
    scorer = Scorer(config.rewards, (), engine.tokenizer)
    sampling = Sampling(max_tokens=config.max_tokens, temperature=config.temperature, stop=config.stop)
    lines: list[str] = []
    rewards: list[float] = []
    best: list[float] = []
    for number, prompt in enumerate(prompts):
        sampled = answers_of(engine, [prompt], config.samples, sampling, (config.seed, "best", number))
        scored = [(scorer.reward(prompt, one.ids, one.completion.text)[1], one) for one in sampled]
        rewards += [reward for reward, _ in scored]
        best.append(max(rewards[-config.samples :]))
        lines += [json.dumps(row, ensure_ascii=False) + "\n" for row in kept(scored, config)]
    if not lines:
        whole = "; whole=false keeps those that max_tokens cut" if config.whole else ""
        raise DataError(
            f"{config.data}: expected an answer to keep, found none of {len(rewards)}, whose best reward is "
            f"{max(rewards):.3f}; lower least, or raise samples or max_tokens{whole}"
        )
    make_folder(config.out.parent)
    write_text_durably(config.out, "".join(lines))
    figures = {
        "prompts": len(prompts), "written": len(lines), "reward_all": sum(rewards) / len(rewards),
        "reward_best": sum(best) / len(best),
    }  # fmt: skip
    say(
        f"{config.out}: {len(lines):,} answers to {len(prompts):,} prompts; reward {figures['reward_all']:.3f}, of the "
        f"best {figures['reward_best']:.3f}"
    )
    return figures


def kept(scored: Sequence[tuple[float, Sampled]], config: BestOfConfig) -> list[dict[str, Any]]:
    """Rows of the best answers to one prompt, the earlier of equal ones first, each text once, empty ones never."""
    rows: dict[str, dict[str, Any]] = {}
    for reward, one in sorted(scored, key=lambda pair: -pair[0]):
        text, row = one.completion.text, one.prompt.row
        if reward < config.least or len(rows) == config.keep:
            break
        if text in rows or not text.strip() or one.completion.finish_reason != "stop" and config.whole:
            continue
        if "messages" in row:
            rows[text] = {"messages": [*row["messages"], {"role": "assistant", "content": text}], "reward": reward}
        else:
            rows[text] = {"prompt": row["prompt"], "response": text, "reward": reward}
    return list(rows.values())
