"""The report's page: complete, self-contained, safe against what it shows, and true to the log."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fledge import config as configs
from fledge.errors import ConfigError, DataError
from fledge.lineage import write_card
from fledge.train.markup import Html, tag
from fledge.train.report import ReportConfig, report

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>&\x00\u202e"


class Page(HTMLParser):
    """Every tag and attribute of a page, and whether tags close in the order they opened."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))
        if name not in ("meta", "br", "hr", "wbr"):  # an SVG element without children closes itself
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.tags.append((name, dict(attributes)))

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.text += data


def make_run(folder: Path, steps: int = 20, finished: bool = True, text: str = "plain") -> Path:
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(f"# threads: 2\nmodel:\n  width: 64\nnote: {json.dumps(text)}\n")
    facts = {"device": "cpu", "threads": 2, "torch": text}
    events = [{"kind": "start", "step": 0, "facts": facts, "parameters": 1234567, "matmul_peak_flops": 2e11}]
    for step in range(1, steps + 1):
        figures = {"loss": "nan" if step == 3 else 8.0 / step, "learning_rate": 1e-3, "gradient_norm": 1.0 / step}
        events.append({"kind": "step", "step": step, **figures, "tokens": step * 100, "tokens_per_second": 5000.0})
        events[-1] |= {"mfu": 0.5, "seconds": step * 2.0, "skipped": 1}
    events.append({"kind": "evaluate", "step": 10, "val_loss": 1.25})
    events.append({"kind": "sample", "step": 10, "prompt": text, "text": text})
    if finished:
        end = {"val_loss": 0.75, "steps": steps, "tokens": steps * 100, "seconds": 36.0, "cpu_seconds": 72.0}
        events.append({"kind": "end", **end})
    (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    write_card(folder / "model", "model", {"tokenizer": "ab" * 32})
    return folder


def evaluation(text: str = "plain") -> dict:
    score = {"value": 1.7, "n": 41, "interval": [1.6, 1.8]}
    bits = {"bits_per_byte": 1.7, "before_bits_per_byte": 1.68, "gzip_bits_per_byte": 2.2, "xz_bits_per_byte": 1.9}
    sample = {"question": text, "reference": text, "before": text, "answer": text}
    asked = {"exact": 0.125, "scores": {"exact": score}, "samples": [sample], "method": text}
    method = {text: text}
    per_document = [{"path": text, "bytes": 5000, "bits_per_byte": 1.5}]
    return {"text": text, "split": "val", "documents": 41, "bytes": 512345, **bits, "scores": {"bits_per_byte": score},
            "questions": asked, "method": method, "per_document": per_document}  # fmt: skip


def write(tmp_path: Path, **changes) -> tuple[str, dict]:
    result = report(ReportConfig(**{"run": tmp_path / "run", **changes}), json=True)
    return Path(result["out"]).read_text(encoding="utf-8"), result


def test_the_page_holds_every_part(tmp_path):
    make_run(tmp_path / "run")
    make_run(tmp_path / "sft")
    (tmp_path / "sft" / "evaluation.json").write_text(json.dumps(evaluation()))
    text, result = write(tmp_path, also=(tmp_path / "sft",))
    page = Page(text)
    assert page.open == []
    for part in ("Curves: run", "Curves: sft", "Samples on the way: sft", "Evaluation", "Cost", "Lineage"):
        assert part in page.text
    assert [name for name, _ in page.tags].count(
        "svg"
    ) == 8 + 6  # each has four; side by side, FLOPs not being logged, six
    for figure in ("0.7500", "1,234,567", "xz -9 1.900", "1.6000 to 1.8000", "12.5 %", "512,345", "Config and machine"):
        assert figure in page.text, figure
    assert ("code", {"title": "ab" * 32}) in page.tags
    assert result["runs"] == [str(tmp_path / "run"), str(tmp_path / "sft")]


def test_the_losses_of_averaged_weights_are_shown_where_there_are_any(tmp_path):
    run = make_run(tmp_path / "run")
    assert "averaged weights" not in write(tmp_path)[0]
    with open(run / "log.jsonl", "a", encoding="utf-8") as log:
        log.write(json.dumps({"kind": "evaluate", "step": 5, "val_loss": 3.0, "ema_val_loss": 2.5}) + "\n")
    assert "validation of averaged weights: 2.5 at step 5" in write(tmp_path)[0]


def test_energy_is_cpu_seconds_times_watts_and_says_so(tmp_path):
    make_run(tmp_path / "run")
    text, result = write(tmp_path, watts_per_core=25.0)
    assert result["watt_hours"] == 0.5 and result["seconds"] == 36.0  # 72 s x 25 W / 3600
    assert "25 W per busy core" in text and "estimate, not a measurement" in text


def test_an_unfinished_run_is_reported_as_far_as_it_got(tmp_path):
    make_run(tmp_path / "run", finished=False)
    text, result = write(tmp_path)
    assert "Not finished: run (step 20)" in text
    assert result["seconds"] == 40.0
    assert result["watt_hours"] == round(40 * 2 * 10 / 3600, 3)  # wall seconds times threads, for want of CPU seconds


def test_nothing_shown_can_run_or_load(tmp_path):
    run = make_run(tmp_path / "run", text=EVIL)
    (run / "evaluation.json").write_text(json.dumps(evaluation(EVIL)))
    text, _ = write(tmp_path)
    page = Page(text)
    assert page.open == []
    names = {name for name, _ in page.tags}
    assert not names & {"script", "img", "iframe", "link", "object", "embed", "form", "a", "base"}
    attributes = {key for _, found in page.tags for key in found}
    assert not {key for key in attributes if key.startswith("on")} | (attributes & {"src", "href", "action", "srcdoc"})
    assert page.text.count("<script>alert(1)</script>") >= 10  # shown as text in every place
    assert "url(" not in text and "@import" not in text and "\x00" not in text
    assert re.search(r"http-equiv=\"Content-Security-Policy\" content=\"default-src &#x27;none&#x27;", text)


def test_markup_made_here_is_not_escaped_and_text_is():
    assert tag("p", EVIL[:8]) == "<p>&lt;script&gt;</p>"
    assert tag("p", Html("<b>x</b>")) == "<p><b>x</b></p>"  # the control: escaping is what keeps it out
    assert tag("p", "x", title='"><script>') == '<p title="&quot;&gt;&lt;script&gt;">x</p>'


def test_a_folder_without_a_log_is_named(tmp_path):
    with pytest.raises(DataError, match=r"log\.jsonl: expected a run's log"):
        report(ReportConfig(tmp_path), json=True)
    make_run(tmp_path / "run")
    with pytest.raises(DataError, match="expected the result of fledge evaluate"):
        write(tmp_path, evaluation=(tmp_path / "none.json",))
    with pytest.raises(ConfigError, match="watts_per_core"):
        configs.from_dict(ReportConfig, {"run": "x", "watts_per_core": -1})


@pytest.mark.parametrize(
    "broken",
    [
        "[]",
        "{",
        '{"bits_per_byte": NaN}',
        '{"scores": 3, "questions": {"samples": [1]}}',
        '{"questions": {"samples": 5}}',
    ],
)
def test_a_broken_evaluation_is_refused_or_shown_without_what_it_lacks(tmp_path, broken):
    make_run(tmp_path / "run")
    (tmp_path / "e.json").write_text(broken)
    try:
        text, _ = write(tmp_path, evaluation=(tmp_path / "e.json",))
    except DataError as error:
        assert "e.json" in str(error)
    else:
        assert Page(text).open == []


def test_a_log_with_odd_events_does_not_stop_the_report(tmp_path):
    run = make_run(tmp_path / "run")
    with open(run / "log.jsonl", "a") as log:
        log.write(f'{{"kind": "step", "step": 3, "loss": {"9" * 400}}}\n')
        log.write('[1, 2]\n{"kind": "step", "step": true, "loss": "x"}\n{"kind": "sample"}\n{"kind": "step", "st')
    assert Page(write(tmp_path)[0]).open == []


def test_only_a_page_is_written_over(tmp_path):
    make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"out: expected a file ending in \.html, got .*log\.jsonl"):
        write(tmp_path, out=tmp_path / "run" / "log.jsonl")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ConfigError, match="expected a file to write, got a folder"):
        write(tmp_path, out=tmp_path / "folder.html")
    assert write(tmp_path, out=tmp_path / "new" / "page.html")[1]["out"].endswith("page.html")  # the control
