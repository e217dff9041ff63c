"""`fledge attention`: the page holds every weight, loads nothing, and runs nothing that a text says."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from fledge.cli.main import main
from fledge.config import field_docs
from fledge.model.attention_config import AttentionConfig
from fledge.model.attention_maps import AttentionMaps
from fledge.model.attention_page import page
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import save_model
from fledge.model.init import initialise
from fledge.model.transformer import build
from fledge.text.tokenizer import byte_level

ATTACK = "</script><script>window.broken=1</script><img src=x onerror='window.broken=2'>"


def some_maps() -> AttentionMaps:
    generator = np.random.default_rng(3)

    def weights(rows: int, columns: int) -> np.ndarray:
        raw = generator.random((2, 3, rows, columns)).astype(np.float32) ** 4
        return raw / raw.sum(-1, keepdims=True)

    return AttentionMaps(["<s>", ATTACK, "b\n"], ["the", " dog", " ", ""], weights(4, 4), weights(3, 3), weights(3, 4))


def data_of(text: str) -> dict:
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[0])


def test_the_page_holds_every_weight_and_loads_nothing():
    maps = some_maps()
    text = page(maps, "a model")
    parts = data_of(text)["parts"]
    assert [part["name"] for part in parts] == ["encoder", "cross", "decoder"]
    for part in parts:
        whole = np.frombuffer(base64.b64decode(part["weights"]), "<u2")
        expected = maps.parts[part["name"]]
        assert np.abs(whole.reshape(expected.shape) / 65535 - expected).max() <= 0.5 / 65535 + 1e-7
        assert (part["rows"], part["columns"]) == maps.texts(part["name"])
    assert not re.search(r"https?:|@import|url\(|src=\"", text.replace("\\u003c", ""))
    assert text.count("</script>") == 2 and "default-src 'none'" in text


def test_the_command_writes_the_page_and_tells_each_heads_entropy(tmp_path: Path, capsys):
    tokenizer = byte_level()
    shape = ShapeConfig("llama", width=32, layers=2, heads=4, context_tokens=64, vocab_size=tokenizer.vocab_size)
    model = initialise(build(family("llama").new_config(shape), "cpu"), 3)
    save_model(model, tmp_path / "model", tokenizer)
    out = tmp_path / "pages" / "a.html"
    assert main(["attention", str(tmp_path / "model"), "hello", "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["bytes"] == out.stat().st_size and len(result["tokens"]) == 6
    assert np.array(result["entropy"]["decoder"]).shape == (2, 4)
    assert main(["attention", str(tmp_path / "model"), "hello", "--max-tokens", "3", "--out", str(out)]) != 0
    assert set(field_docs(AttentionConfig)) >= {"model", "text", "target", "out", "max_tokens"}


@pytest.mark.browser
def test_a_pointer_reads_the_weight_and_nothing_of_a_token_runs(tmp_path: Path):
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("FLEDGE_TEST_ALL"):
            pytest.fail("no Chromium", pytrace=False)
        pytest.skip("no Chromium")
    from playwright.sync_api import sync_playwright

    maps = some_maps()
    (tmp_path / "a.html").write_text(page(maps, ATTACK), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1000, "height": 900})
        asked, wrong = [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda message: wrong.append(message.text))
        tab.goto((tmp_path / "a.html").as_uri())
        tab.get_by_role("button", name="Cross").click()
        tab.get_by_role("button", name="layer 1, head 2").click()
        box = tab.locator("#map canvas").bounding_box()
        tab.mouse.move(box["x"] + box["width"] * 1.5 / 4, box["y"] + box["height"] * 2.5 / 3)
        said = tab.locator("#said").text_content()
        cells = tab.locator(".cell").count()
        broken = tab.evaluate("window.broken")
        browser.close()
    assert f"{maps.cross[1, 2, 2, 1]:.4f} from  dog (1)" in said
    assert cells == 2 * (3 + 1) and broken is None and wrong == [] and len(asked) == 1
