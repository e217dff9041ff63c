"""`fledge attention`: the page holds every weight, loads nothing, and runs nothing that a text says."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
from tests.serve.browsing import launched

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


@pytest.mark.parametrize("name", ["log.jsonl", "folder.html"])
def test_another_file_and_a_folder_are_no_place_for_the_page(name: str, tmp_path: Path, capsys):
    (tmp_path / "log.jsonl").write_text("a run's log")
    (tmp_path / "folder.html").mkdir()
    assert main(["attention", str(tmp_path / "no-model"), "ab", "--out", str(tmp_path / name)]) == 2
    assert name in capsys.readouterr().err
    assert (tmp_path / "log.jsonl").read_text() == "a run's log"


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[tuple[Any, list[str], list[str]]]:
    """A browser's tab on a page, what it asked for and what went wrong; skips where there is no browser."""
    with launched() as browser:
        tab = browser.new_page(**options)
        asked: list[str] = []
        wrong: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda message: wrong.append(message.text))
        tab.goto(path.as_uri(), timeout=60_000)
        yield tab, asked, wrong


@pytest.mark.browser
def test_a_pointer_reads_the_weight_and_nothing_of_a_token_runs(tmp_path: Path):
    maps = some_maps()
    (tmp_path / "a.html").write_text(page(maps, ATTACK), encoding="utf-8")
    with opened(tmp_path / "a.html", viewport={"width": 1000, "height": 900}) as (tab, asked, wrong):
        tab.get_by_role("button", name="Cross").click()
        tab.get_by_role("button", name="layer 1, head 2").click()
        box = tab.locator("#map canvas").bounding_box()
        tab.mouse.move(box["x"] + box["width"] * 1.5 / 4, box["y"] + box["height"] * 2.5 / 3)
        said = tab.locator("#said").text_content()
        cells = tab.locator(".cell").count()
        entropies = tab.locator(".cell small").all_text_contents()
        broken = tab.evaluate("window.broken")
    assert f"{maps.cross[1, 2, 2, 1]:.4f} from  dog (1)" in said
    assert cells == 2 * (3 + 1) and broken is None and wrong == [] and len(asked) == 1
    expected = maps.entropy("cross")
    rows = np.concatenate([expected, expected.mean(1, keepdims=True)], 1)
    assert [float(text) for text in entropies] == pytest.approx(rows.flatten().tolist(), abs=0.006)


@pytest.mark.browser
def test_a_long_text_is_drawn_at_once_and_read_in_a_narrow_dark_window(tmp_path: Path):
    """300 tokens, 48 heads: 4 million weights. The line that says the weight stays in sight at the map's lower end."""
    generator = np.random.default_rng(1)
    weights = np.tril(generator.random((6, 8, 300, 300), dtype=np.float32))
    weights /= weights.sum(-1, keepdims=True)
    maps = AttentionMaps([f" word{i}" for i in range(299)] + ["\0"], [], decoder=weights)
    (tmp_path / "a.html").write_text(page(maps, "long"), encoding="utf-8")
    options = {"viewport": {"width": 390, "height": 700}, "color_scheme": "dark"}
    with opened(tmp_path / "a.html", **options) as (tab, asked, wrong):
        took = tab.evaluate("() => { const began = performance.now(); drawGrid(); return performance.now() - began }")
        wide = tab.evaluate("document.documentElement.scrollWidth")
        tab.locator("#words").scroll_into_view_if_needed()
        box = tab.locator("#map canvas").bounding_box()
        tab.mouse.move(box["x"] + 30.5 * 3, box["y"] + 299.5 * 3)
        said = tab.locator("#said").text_content()
        line = tab.locator("#said").bounding_box()
        words = tab.locator("#words b").text_content()
    assert took < 5000 and wide == 390 and wrong == [] and len(asked) == 1
    assert f"\\x00 (299) takes {weights[0, 0, 299, 30]:.4f} from  word30 (30)" in said and "(299)" in words
    assert 0 <= line["y"] < 700
