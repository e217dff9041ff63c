"""Folders that leave the house: transformers, and PEFT beside a base, write our server's tokens for 50 prompts.

A real checkpoint (stories260K) with LoRA on every map, as hot adapter of a server, as PEFT's folder and merged.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import peft
import pytest
import torch
import transformers

from fledge.model.convert import convert
from fledge.model.convert_config import ConvertConfig
from fledge.model.folder import load_model
from fledge.recipes.merge import merge_adapter
from fledge.text.tokenizer import Tokenizer
from fledge.tune.attach import tune
from fledge.tune.config import MergeConfig, TuneConfig
from fledge.tune.folder import save_adapter
from tests.serve.running import RunningServer, running
from tests.tune.theirs import random_adapters

PROMPTS, PROMPT_WORDS, NEW_TOKENS = 50, 12, 48


@pytest.fixture(scope="module")
def place(tmp_path_factory, data_file) -> Path:
    """A base, PEFT's folder of an adapter beside it, and the two merged."""
    folder, checkpoint = tmp_path_factory.mktemp("exports"), data_file("ckpt_stories260K")
    base = folder / "base"
    convert(ConvertConfig(str(checkpoint / "stories260K.bin"), str(base), str(checkpoint / "tok512.bin")))
    how = TuneConfig("lora", 8, 4, targets=("all-linear",))
    tuned = random_adapters(tune(load_model(base), how, 1))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name.endswith("adapter.up"):
                parameter.mul_(0.3)  # stories still, but others
    save_adapter(tuned, folder / "adapter", how, base, Tokenizer.load(base))
    merge_adapter(MergeConfig(base, folder / "adapter", folder / "merged"))
    return folder


@pytest.fixture(scope="module")
def prompts(data_file) -> list[str]:
    words = data_file("text_tinystories_sample/tinystories.txt").read_text(encoding="utf-8").split()
    starts = range(0, len(words) - PROMPT_WORDS, len(words) // PROMPTS)
    return [" ".join(words[start : start + PROMPT_WORDS]) for start in starts][:PROMPTS]


@pytest.fixture(scope="module")
def server(place) -> RunningServer:
    with running(str(place / "base"), f"adapters=[tuned={place}/adapter]") as server:
        yield server


def served(server: RunningServer, model: str, prompts: list[str]) -> list[tuple[list[int], list[int]]]:
    """(prompt's ids, answer's ids) of each, eight callers at once."""
    asked = {"model": model, "max_tokens": NEW_TOKENS, "temperature": 0, "return_token_ids": True, "ignore_eos": True}

    def one(prompt: str) -> tuple[list[int], list[int]]:
        choice = server.complete(prompt, **asked).json()["choices"][0]
        return choice["prompt_token_ids"], choice["token_ids"]

    with ThreadPoolExecutor(8) as callers:
        return list(callers.map(one, prompts))


def base_model(place: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(place / "base")


THEIRS: dict[str, tuple[str, Callable[[Path], torch.nn.Module]]] = {
    "transformers, the base": ("base", base_model),
    "PEFT beside the base": ("base:tuned", lambda place: peft.PeftModel.from_pretrained(
        base_model(place), place / "adapter")),
    "transformers, merged": ("base:tuned", lambda place: transformers.AutoModelForCausalLM.from_pretrained(
        place / "merged")),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", THEIRS)
def test_fifty_prompts_have_the_servers_tokens(name, place, prompts, server):
    model_name, load = THEIRS[name]
    model = load(place).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "base")
    ours = served(server, model_name, prompts)
    for prompt, (prompt_ids, answer) in zip(prompts, ours, strict=True):
        ids = [tokenizer.bos_token_id, *tokenizer(prompt).input_ids]  # a completion's text gets BOS (docs/serve.md)
        assert ids == prompt_ids
        theirs = torch.tensor([ids])
        told = model.generate(
            input_ids=theirs, attention_mask=torch.ones_like(theirs), do_sample=False, max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert told[0, len(prompt_ids) :].tolist() == answer, prompt
    others = served(server, "base" if model_name != "base" else "base:tuned", prompts[:5])
    assert sum(other != one for other, one in zip(others, ours, strict=False)) > 2  # the control
