"""Adapters over HTTP: `model: base:adapter`, all in one batch; loaded, replaced and unloaded while the server runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from fledge.cli.main import main
from fledge.engine.loaded import load
from fledge.errors import ConfigError
from fledge.model.folder import load_model, save_model
from fledge.serve.adapters import split
from fledge.text.tokenizer import byte_level
from fledge.tune.attach import tune
from fledge.tune.config import TuneConfig
from fledge.tune.folder import save_adapter
from tests.compress.tiny import tiny
from tests.serve.browsing import Watched, launched
from tests.serve.running import KEY, running, wait_until
from tests.tune.theirs import random_adapters

ASKED = {"max_tokens": 12, "temperature": 0}
PROMPT = "the cat sat on a mat and the cat sat"
NAMES = [("base", "base"), ("base:first", "first")]
TALK = [{"role": "user", "content": "say 2"}]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base, an adapter that is there from the start, and one that is loaded later."""
    folder = tmp_path_factory.mktemp("served")
    save_model(tiny("llama", context_tokens=96), folder / "base", byte_level())
    for seed, name in enumerate(("first", "shelf/second", "shelf/third")):
        how = TuneConfig("lora", 4, 16)
        tuned = random_adapters(tune(load_model(folder / "base"), how, seed), seed)
        save_adapter(tuned, folder / name, how, folder / "base", byte_level())
    return folder


def words(place: Path) -> tuple[str, ...]:
    return (f"adapters=[first={place}/first]", f"adapters_dir={place}/shelf")


def wanted(folder: Path) -> tuple[str, str]:
    """(continuation, answer) of a folder served by itself: its adapter in the weights."""
    model = load(folder)
    return model.generate(PROMPT, **ASKED), model.chat("say 2", **ASKED)


def test_every_caller_of_a_full_batch_gets_the_answers_of_the_adapter_that_he_named(place):
    names = {"base": "base", "base:first": "first", "base:second": "shelf/second"}
    expected = {name: wanted(place / folder) for name, folder in names.items()}
    assert len(set(expected.values())) == 3  # the control
    with running(str(place / "base"), *words(place), f"api_key={KEY}") as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY)
        loaded = server.post("/v1/load_lora_adapter", {"lora_name": "second", "lora_path": "second"}, headers=auth())
        assert loaded.json() == {"status": "loaded", "model": "base:second"}
        cards = {card.id: card for card in client.models.list().data}
        assert cards.keys() == names.keys() and cards["base:first"].parent == "base" and cards["base:first"].chat
        assert client.models.retrieve("base:second").id == "base:second"

        def both(name: str) -> tuple[str, str]:
            text = client.completions.create(model=name, prompt=PROMPT, **ASKED)
            talk = client.chat.completions.create(model=name, messages=TALK, **ASKED)
            assert text.model == talk.model == name
            return text.choices[0].text, talk.choices[0].message.content

        with ThreadPoolExecutor(9) as callers:
            got = list(callers.map(both, [*names] * 3))
        assert got == [expected[name] for name in names] * 3
        prints = [client.completions.create(model=n, prompt="a", **ASKED).system_fingerprint for n in names]
        assert len(set(prints)) == 3
        with pytest.raises(openai.NotFoundError, match="this server has 'base', 'base:first', 'base:second'"):
            both("base:nobody")


def auth() -> dict[str, str]:
    return {"Authorization": f"Bearer {KEY}"}


def test_adapters_are_replaced_and_unloaded_while_others_are_answered(place):
    with running(str(place / "base"), *words(place)) as server:
        for folder in ("second", "third"):
            body = {"lora_name": "live", "lora_path": folder}
            assert server.post("/v1/load_lora_adapter", body).status_code == 200
            answer = server.complete(PROMPT, model="base:live", **ASKED).json()["choices"][0]["text"]
            assert answer == wanted(place / "shelf" / folder)[0]
        assert server.post("/v1/unload_lora_adapter", {"lora_name": "live"}).json()["status"] == "unloaded"
        assert server.complete(PROMPT, model="base:live").json()["error"]["code"] == "model_not_found"
        gone = server.post("/v1/unload_lora_adapter", {"lora_name": "live"})
        assert gone.status_code == 404 and gone.json()["error"]["param"] == "lora_name"
        assert "this server has 'first'." in gone.json()["error"]["message"]
        assert server.complete(PROMPT, model="base:first", **ASKED).status_code == 200


def test_a_restarted_engine_has_the_adapters_whose_files_are_the_same(place, tmp_path):
    for name in ("base", "first"):
        shutil.copytree(place / name, tmp_path / name)
    shutil.copytree(place / "shelf", tmp_path / "shelf")
    save_adapter_beside(tmp_path)
    with running(str(tmp_path / "base"), *words(tmp_path)) as server:
        for name in ("second", "third"):
            server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": name})
        os.utime(tmp_path / "shelf" / "third" / "adapter_model.safetensors", (1, 1))  # replaced, for all one can tell
        os.kill(server.engine().pid, signal.SIGKILL)
        wait_until(lambda: server.metric("fledge_engine_restarts_total") == 1, 10)
        server.wait_ready()
        for name in ("first", "second"):
            assert server.complete(PROMPT, model=f"base:{name}", **ASKED).status_code == 200
        gone = server.complete(PROMPT, model="base:third", **ASKED)
        assert gone.status_code == 404 and "adapter third is no more served" in server.errors()
        assert [card["id"] for card in server.client.get("/v1/models").json()["data"]] == [
            "base", "base:first", "base:second"
        ]  # fmt: skip


def save_adapter_beside(folder: Path) -> None:
    """Have copies of adapters name the copied base."""
    for path in folder.rglob("adapter_config.json"):
        text = path.read_text()
        path.write_text(text.replace(text.split('"base_model_name_or_path": "')[1].split('"')[0], f"{folder}/base"))


def test_what_callers_may_not_load(place):
    with running(str(place / "base"), *words(place)) as server:
        for body, status, message in (
            ({"lora_name": "x", "lora_path": "../first"}, 400, "inside the server's adapters_dir"),
            ({"lora_name": "x", "lora_path": str(place / "first")}, 400, "inside the server's adapters_dir"),
            ({"lora_name": "x", "lora_path": "."}, 400, "inside the server's adapters_dir"),
            ({"lora_name": "x", "lora_path": "a\0b"}, 400, "inside the server's adapters_dir"),
            ({"lora_name": "x", "lora_path": "a" * 300}, 400, "inside the server's adapters_dir"),
            ({"lora_name": "x:y", "lora_path": "second"}, 400, "lora_name: expected letters"),
            ({"lora_name": "x"}, 400, "lora_path: expected a text"),
            ({"lora_name": 3, "lora_path": "second"}, 400, "lora_name: expected a text"),
        ):
            refused = server.post("/v1/load_lora_adapter", body)
            assert refused.status_code == status and message in refused.json()["error"]["message"], body
        (place / "shelf" / "empty").mkdir(exist_ok=True)
        empty = server.post("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "empty"}).json()["error"]
        assert "empty: expected an adapter folder" in empty["message"] and str(place) not in empty["message"]
    with running(str(place / "base")) as server:  # without a folder for it nobody may
        fixed = server.post("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "second"})
        assert fixed.status_code == 403 and fixed.json()["error"]["code"] == "adapters_fixed"


def test_no_more_are_loaded_than_the_server_holds(place):
    with running(str(place / "base"), *words(place), "max_adapters=2") as server:
        for name, status in (("a", 200), ("b", 400), ("a", 200)):
            body = {"lora_name": name, "lora_path": "second"}
            answer = server.post("/v1/load_lora_adapter", body)
            assert answer.status_code == status, answer.text
        assert server.post("/v1/load_lora_adapter", {**body, "lora_name": "b"}).json()["error"]["code"] == (
            "too_many_adapters"
        )
        server.post("/v1/unload_lora_adapter", {"lora_name": "first"})
        assert server.post("/v1/load_lora_adapter", {**body, "lora_name": "b"}).status_code == 200


@pytest.mark.browser
def test_the_page_talks_to_the_adapter_that_was_chosen(place):
    expected = {name: load(place / folder).chat("say 2", temperature=0, max_tokens=40) for name, folder in NAMES}
    with running(str(place / "base"), *words(place)) as server, launched() as browser:
        watched = Watched(browser, server.url)
        assert watched.page.locator("#models option").all_text_contents() == ["base", "base:first"]
        assert watched.page.locator("#model").is_hidden()
        watched.page.evaluate("document.getElementById('open-settings').click()")
        for field, value in (("#temperature", "0"), ("#max-tokens", "40")):
            watched.page.fill(field, value)
        watched.page.keyboard.press("Escape")
        for number, (name, _) in enumerate(NAMES, 1):
            watched.page.select_option("#models", name)
            watched.page.click("#new")
            watched.say("say 2")
            watched.wait("done")
            kept = json.loads(watched.page.evaluate("localStorage.getItem('fledge.chat.1')"))
            assert kept["messages"][1]["content"] == expected[name]
            assert watched.bodies[number - 1].get("model") == (name if ":" in name else None)
        watched.page.reload()
        watched.page.wait_for_function("() => document.getElementById('models').value === 'base:first'")
        server.post("/v1/load_lora_adapter", {"lora_name": "second", "lora_path": "second"})
        watched.page.reload()
        watched.page.wait_for_function("() => document.querySelectorAll('#models option').length === 3")
        watched.settle()
        watched.context.close()


def test_mistakes_in_adapters_are_told_before_anything_listens(place, capsys):
    for word in ("first", "a=", "=b", "a b=c", "a:b=c"):
        with pytest.raises(ConfigError, match="expected name=folder"):
            split((word,))
    with pytest.raises(ConfigError, match="each name once"):
        split(("a=b", "a=c"))
    assert main(["serve", str(place / "base"), "adapters=[x=/nowhere]"]) == 1
    assert "expected an adapter folder with adapter_config.json" in capsys.readouterr().err
