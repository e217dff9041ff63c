"""Samples of a model in training, drawn by the engine that will serve it."""

from __future__ import annotations

from fledge.engine.config import EngineConfig
from fledge.engine.core import Engine
from fledge.engine.request import Request, Sampling
from fledge.engine.runner import Runner, copied
from fledge.log import RunLog, say
from fledge.model.transformer import Transformer
from fledge.recipes.config import SampleConfig
from fledge.text.tokenizer import Tokenizer
from fledge.train.recipe import Hook, Recipe
from fledge.tune.merge import served

SAMPLE_SEED = 1


def sample_text(model: Transformer, tokenizer: Tokenizer, prompt_ids: list[int], config: SampleConfig) -> str:
    """The continuation of `prompt_ids` under today's weights; the same seed every time, so that samples compare."""
    room = model.document_tokens - len(prompt_ids)
    if room < 1:
        return ""
    n_tokens = min(config.max_tokens, room)
    engine = Engine(Runner(served(copied(model)), 1, len(prompt_ids) + n_tokens), tokenizer, EngineConfig(n_slots=1))
    sampling = Sampling(max_tokens=n_tokens, temperature=config.temperature, seed=SAMPLE_SEED)
    return engine.complete([Request("sample", tuple(prompt_ids), sampling)])[0].text


def sample_hook(
    recipe: Recipe, tokenizer: Tokenizer, prompt_ids: list[int], config: SampleConfig, log: RunLog, every_steps: int
) -> Hook:
    """A hook that draws a sample from the recipe's model, shows it and logs it."""

    def act(step: int) -> None:
        text = sample_text(recipe.model, tokenizer, prompt_ids, config)
        say(f"step {step}: {config.prompt} … {text}"[:400].replace("\n", "⏎"))
        log.write("sample", step=step, prompt=config.prompt, text=text)

    return Hook(every_steps, act)
