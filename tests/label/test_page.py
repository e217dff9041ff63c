"""The labelling page in a real browser: voted on by keys alone, and nothing that a prompt or an answer holds runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fledge.label.places import open_labels
from fledge.label.store import Vote
from tests.label.running import Labelling, labelling
from tests.label.samples import write_rows
from tests.serve.browsing import Watched, launched

pytestmark = pytest.mark.browser

ATTACK = "<script>window.broken=1</script><img src=x onerror=window.broken=2><b>bold</b>"
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
SEED = 918273645
ROWS = [
    {"prompt": f"Prompt {ATTACK}", "chosen": f"Good 1 {ATTACK}", "rejected": f"Bad 1 {ATTACK}"},
    {"prompt": CHAT, "chosen": "Good 2", "rejected": "Bad 2"},
    *({"prompt": f"Question {i}", "chosen": f"Good {i}", "rejected": f"Bad {i}"} for i in range(3, 9)),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labelling")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Labelling]:
    """One for all tests, each of which has annotators of its own."""
    rows = write_rows(folder / "pairs.jsonl", ROWS)
    with labelling(rows, folder / "labels.db", f"seed={SEED}") as started:
        yield started


@pytest.fixture
def watched(browser: Any, server: Labelling) -> Iterator[Watched]:
    opened = Watched(browser, server.url)
    yield opened
    opened.settle()
    opened.context.close()


def done(page: Any, n: int) -> None:
    """Wait until the page shows `n` as done, and long enough for the next key to be meant for what it shows."""
    page.wait_for_function(
        "n => document.getElementById('counts').textContent.startsWith(`${n} of 8`)"
        " && document.getElementById('scroll').contains(document.activeElement)",
        arg=n,
    )
    page.wait_for_timeout(280)


def begin(page: Any, name: str) -> None:
    page.wait_for_function("() => document.activeElement.id === 'name'")
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    done(page, 0)


def shown(page: Any, side: str) -> str:
    return str(page.locator(f"#{side}").text_content())


def votes(folder: Path, *names: str) -> list[Vote]:
    """Those of the annotators of these names."""
    store = open_labels(str(folder / "labels.db"))
    try:
        return [vote for vote in store.votes() if vote.annotator in names]
    finally:
        store.close()


def test_every_item_is_judged_by_keys_alone_and_stored_as_it_was_seen(watched: Watched, folder: Path) -> None:
    page = watched.page
    begin(page, "Ana")
    expected = []
    for number, key in enumerate(("a", "2", "ArrowLeft", "t", "s", "B", "1"), 1):
        side = {"a": "a", "1": "a", "ArrowLeft": "a", "2": "b", "B": "b"}.get(key)
        good = side and shown(page, side).startswith("Good")
        expected.append({"t": "tie", "s": "skip"}.get(key) or ("first" if good else "second"))
        page.keyboard.press(key)
        done(page, number)
    assert [vote.choice for vote in votes(folder, "ana")] == expected
    page.keyboard.press("u")
    done(page, 6)
    page.keyboard.press("r")
    page.keyboard.type("a t s u")  # typed, not done
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")  # ticks the last reason
    page.keyboard.press("ArrowRight")
    done(page, 7)
    last = votes(folder, "ana")[-1]
    assert (last.reason, last.reasons) == ("a t s u", ("safer",)) and 0.2 < last.seconds < 30
    assert page.locator("#reason").input_value() == "" and page.locator("#reasons :checked").count() == 0
    page.keyboard.press("a")
    page.wait_for_function("() => document.activeElement.id === 'again'")
    page.keyboard.press("Enter")
    done(page, 7)
    assert page.locator("#prompt").text_content() == "Question 5"
    assert page.locator("#status").text_content() == "Pair 5"


def test_prompts_and_answers_are_text(watched: Watched) -> None:
    page = watched.page
    begin(page, "Bea")
    assert page.locator("#prompt").text_content() == f"Prompt {ATTACK}"
    assert {shown(page, "a"), shown(page, "b")} == {f"Good 1 {ATTACK}", f"Bad 1 {ATTACK}"}
    assert page.locator("main :is(script, img, b)").count() == 0
    page.keyboard.press("a")
    done(page, 1)
    assert page.locator("#prompt").text_content() == "SystemBe kind.UserHi"


def test_the_probe_for_what_runs_can_fail(watched: Watched) -> None:
    """The control: the same texts as markup are seen to run, where the policy doesn't forbid it."""
    watched.page.goto("about:blank")
    watched.page.set_content(f"<body>{ATTACK}")
    watched.page.wait_for_function("() => window.broken")
    with pytest.raises(AssertionError):
        watched.settle()
    watched.page.goto(watched.url)
    watched.errors.clear()
    watched.foreign.clear()


def test_reload_and_back_show_the_item_and_keep_what_was_typed(watched: Watched, folder: Path) -> None:
    page = watched.page
    begin(page, "Dora")
    page.keyboard.press("a")
    done(page, 1)
    page.keyboard.press("r")
    page.keyboard.type("half a rea")
    before = (shown(page, "a"), shown(page, "b"))
    page.reload()
    done(page, 1)
    assert (shown(page, "a"), shown(page, "b")) == before
    assert page.locator("#reason").input_value() == "half a rea"
    page.goto("about:blank")
    page.go_back()
    done(page, 1)
    assert (shown(page, "a"), shown(page, "b")) == before
    page.keyboard.press("u")
    done(page, 0)
    assert votes(folder, "dora") == []


def test_a_second_press_is_not_a_vote_on_the_next_item(watched: Watched, folder: Path) -> None:
    page = watched.page
    begin(page, "Eva")
    for _ in range(4):
        page.keyboard.press("a")
    done(page, 1)
    assert len(votes(folder, "eva")) == 1
    page.keyboard.press("Control+a")
    page.keyboard.press("x")
    page.wait_for_timeout(100)
    assert len(votes(folder, "eva")) == 1


def test_a_vote_whose_answer_was_lost_is_sent_again_and_is_one(watched: Watched, folder: Path) -> None:
    page = watched.page
    begin(page, "Fay")

    def lose(route: Any) -> None:
        route.fetch()  # the server has it
        route.abort()

    page.route("**/api/vote", lose)
    page.keyboard.press("a")
    page.wait_for_function("() => document.getElementById('notice').textContent.startsWith('Not stored')")
    assert len(votes(folder, "fay")) == 1
    page.unroute("**/api/vote")
    page.keyboard.press("a")
    done(page, 1)
    assert page.locator("#notice").is_hidden() and len(votes(folder, "fay")) == 1
    watched.errors[:] = [text for text in watched.errors if "ERR_FAILED" not in text]


def test_two_tabs_of_one_annotator_do_not_judge_an_item_twice(watched: Watched, folder: Path) -> None:
    page = watched.page
    begin(page, "Gina")
    other = watched.context.new_page()
    other.goto(watched.url)
    done(other, 0)  # the name is known to the browser
    other.keyboard.press("a")
    done(other, 1)
    page.keyboard.press("b")
    page.wait_for_function("() => document.getElementById('notice').textContent.includes('another tab')")
    done(page, 1)
    assert len(votes(folder, "gina")) == 1
    watched.errors[:] = [text for text in watched.errors if "409" not in text]


def test_another_name_has_a_queue_of_its_own_and_progress_shows_all(watched: Watched, folder: Path) -> None:
    page = watched.page
    begin(page, "Hana")
    page.keyboard.press("a")
    done(page, 1)
    page.click("#who")
    page.keyboard.press("Control+a")
    page.keyboard.type("Bo")
    page.keyboard.press("Enter")
    done(page, 0)
    page.keyboard.press("b")
    done(page, 1)
    page.keyboard.press("p")
    page.wait_for_selector("#figures table")
    rows = page.locator("#figures tr").all_text_contents()
    assert sum(row.startswith(("bo17", "hana17")) for row in rows) == 2  # 1 done, 7 left
    assert "Krippendorff's alpha" in page.locator("#figures").text_content()
    page.keyboard.press("a")  # behind a dialog nothing is judged
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("?")
    assert page.locator("#help").is_hidden() and len(votes(folder, "hana", "bo")) == 2


def test_the_key_of_the_address_lets_in_and_without_it_the_page_says_so(browser: Any, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "pairs.jsonl", ROWS)
    with labelling(rows, tmp_path / "labels.db", "api_key=sk-for-labels", "annotator=ana") as server:
        opened = Watched(browser, server.url.partition("#")[0])
        opened.page.wait_for_function("() => document.getElementById('notice').textContent.includes('whole address')")
        opened.page.goto("about:blank")
        opened.page.goto(server.url)
        done(opened.page, 0)
        assert "sk-for-labels" not in opened.page.url
        opened.context.close()


def test_a_browser_that_keeps_nothing_can_vote(browser: Any, server: Labelling, folder: Path) -> None:
    watched = Watched(browser, "about:blank")
    watched.page.add_init_script(
        "for (const name of ['localStorage', 'sessionStorage'])"
        " Object.defineProperty(window, name, { get() { throw new DOMException('forbidden', 'SecurityError'); } });"
    )
    watched.page.goto(server.url)
    begin(watched.page, "Lea")
    watched.page.keyboard.press("a")
    done(watched.page, 1)
    assert len(votes(folder, "lea")) == 1 and watched.errors == []
    watched.context.close()


def test_it_fits_a_phone_and_every_control_has_a_name(watched: Watched) -> None:
    page = watched.page
    page.set_viewport_size({"width": 320, "height": 640})
    begin(page, "a rather long name of somebody who annotates")
    page.locator("#why summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.evaluate("document.getElementById('scroll').scrollWidth") <= 320
    for name in ("#vote-a", "#vote-tie", "#vote-b", "#vote-skip", "#undo", "#open-help", "#who"):
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 320 and box["y"] + box["height"] <= 640, name
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, textarea')].filter(e => !(e.getAttribute('aria-label') ||"
        " e.labels?.length || e.textContent.trim())).map(e => e.outerHTML)"
    )
    assert unnamed == []


def test_seed_and_file_are_nowhere_in_what_the_page_is_sent(browser: Any, server: Labelling) -> None:
    sent: list[str] = []
    watched = Watched(browser, "about:blank")
    watched.page.on("response", lambda response: sent.append(response.text()))
    watched.page.goto(server.url)
    begin(watched.page, "Kim")
    watched.page.keyboard.press("a")
    done(watched.page, 1)
    watched.page.keyboard.press("p")
    watched.page.wait_for_selector("#figures table")
    told = "".join(text for text in sent if text.startswith("{"))
    assert "Good 1" in told and "Krippendorff" not in told and '"alpha"' in told
    for secret in (str(SEED), "chosen", "rejected", "ranked", "swapped", "pairs.jsonl", "with_file", "labels.db"):
        assert secret not in told, secret
    watched.context.close()
