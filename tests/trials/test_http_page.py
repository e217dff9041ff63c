"""The chat page in a real browser, and trial 90: nothing that a model or a user writes runs or loads anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.serve.browsing import CHAT_PATH, Watched, launched
from tests.serve.running import RunningServer, running, wait_until

pytestmark = pytest.mark.browser

ATTACK = """<script>window.broken=1</script> **bold** <img src=x onerror="window.broken=2">
<iframe srcdoc="<script>parent.broken=3</script>"></iframe>

![picture](http://evil.example/p.png) [click](javascript:window.broken=4) [docs](https://example.org/a?b=c)
<a href="http://evil.example/x" onmouseover="window.broken=5">x</a> [d](data:text/html,<script>broken=6</script>)

```html
<svg onload="window.broken=7">
```
[![x](http://evil.example/q.png)](vbscript:x) <http://evil.example/"onclick="window.broken=8>
"""


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(f"stub:text={quote(ATTACK)}&delay_ms=1&context_tokens=4000", "name=little") as started:
        yield started


@pytest.fixture(scope="module")
def brief() -> Iterator[RunningServer]:
    """Answers that are over at once."""
    with running("stub:text=All is `well`.", "name=little") as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as started:
        yield started


@pytest.fixture(scope="module")
def server_page(browser: Any, server: RunningServer) -> Iterator[Watched]:
    opened = Watched(browser, server.url)
    yield opened
    opened.context.close()


@pytest.fixture(scope="module")
def brief_page(browser: Any, brief: RunningServer) -> Iterator[Watched]:
    opened = Watched(browser, brief.url)
    yield opened
    opened.context.close()


@pytest.fixture
def watched(server_page: Watched) -> Iterator[Watched]:
    server_page.begin_anew()
    yield server_page
    server_page.settle()


@pytest.fixture
def quick(brief_page: Watched) -> Iterator[Watched]:
    brief_page.begin_anew()
    yield brief_page
    brief_page.settle()


def test_the_page_streams_an_answer_and_shows_its_figures(watched: Watched) -> None:
    watched.say("Hi")
    body = watched.page.locator(".message.assistant .body")
    watched.page.wait_for_function("() => document.querySelector('.message.assistant .body')?.textContent.length > 20")
    first = body.text_content()
    assert watched.page.locator(".message.assistant.streaming").count() == 1
    assert re.search(r"\d+ tokens", watched.page.locator(".figures").nth(1).text_content().replace("\u00a0", " "))
    watched.wait("done")
    assert len(body.text_content()) > len(first)
    figures = watched.page.locator(".figures").nth(1).text_content().replace("\u00a0", " ")
    assert re.fullmatch(r"\d+ tokens · \d+(\.\d)? tokens/s · first after \d\.\d\d s · seed \d+", figures)
    assert f"{len(ATTACK.encode()) + 1} tokens" in figures
    assert watched.page.locator("#model").text_content() == "little"
    assert "of 4,000 tokens" in watched.page.locator("#totals").text_content()


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_stop_works(watched: Watched, server: RunningServer, way: str) -> None:
    watched.say("Hi")
    watched.page.wait_for_function("() => document.querySelector('.message.assistant .body')?.textContent.length > 20")
    assert watched.page.locator("#send").get_attribute("aria-label") == "Stop"
    if way == "button":
        watched.page.click("#send")
    else:
        watched.page.keyboard.press("Escape")
    watched.wait("stopped")
    wait_until(lambda: server.metric("fledge_num_requests_running") == 0, 1)
    kept = watched.page.locator(".message.assistant .body").text_content()
    assert 20 < len(kept) < len(ATTACK)
    assert watched.page.locator("#send").get_attribute("aria-label") == "Send"
    watched.page.reload()
    assert watched.page.locator(".message.assistant .body").text_content() == kept


def test_90_nothing_in_an_answer_or_a_message_runs_or_loads(watched: Watched) -> None:
    page = watched.page
    for _ in range(2):  # as it streams, and replayed from storage
        if not watched.bodies:
            watched.say(ATTACK)
            watched.wait("done")
        else:
            page.reload()
        page.wait_for_timeout(200)
        for row in (".message.user .body", ".message.assistant .body"):
            assert page.locator(row).locator("script, iframe, img, svg, object, embed, form, style, link").count() == 0
        attributes = page.evaluate(
            "[...document.querySelectorAll('#messages .body *')].flatMap(e => e.getAttributeNames())"
        )
        assert set(attributes) <= {"href", "title", "target", "rel", "class", "type"}
        links = page.locator(".message.assistant .body a")
        assert {links.nth(i).get_attribute("href") for i in range(links.count())} >= {"https://example.org/a?b=c"}
        for i in range(links.count()):
            assert re.match("https?://", links.nth(i).get_attribute("href"))
            assert "noopener" in links.nth(i).get_attribute("rel")
        assert "<script>window.broken=1</script>" in page.locator(".message.assistant .body").text_content()
        assert page.locator(".message.user .body").text_content() == ATTACK.strip("\n") + "\n"
        assert page.locator(".message.assistant strong").text_content() == "bold"
        assert '<svg onload="window.broken=7">' in page.locator(".message.assistant pre").text_content()


def test_90_the_policy_stops_what_the_page_would_let_through(browser: Any, server: RunningServer) -> None:
    """The control: these checks see a script that runs and an image that loads, and the policy alone stops both."""
    plain = browser.new_context()
    page = plain.new_page()
    foreign: list[str] = []
    page.on("request", lambda request: foreign.append(request.url))
    page.set_content("<img src='http://127.0.0.1:9/x.png' onerror='window.broken=1'>")
    page.wait_for_function("() => window.broken === 1")
    assert foreign
    plain.close()

    watched = Watched(browser, server.url)
    assert "default-src 'none'" in server.client.get("/").headers["content-security-policy"]
    for sink in (
        "document.body.innerHTML = '<img src=http://127.0.0.1:9/x.png onerror=window.broken=1>'",
        "document.createElement('script').text = 'window.broken=2'",
        "document.body.setAttribute('onclick', 'window.broken=3')",
        "document.write('<b>x</b>')",
    ):
        assert watched.page.evaluate(f"() => {{ try {{ {sink} }} catch (e) {{ return e.name }} }}") == "TypeError", sink
    watched.page.evaluate("() => { document.body.append(document.createElement('img')); }")
    watched.page.evaluate("() => { document.querySelector('img').src = 'http://127.0.0.1:9/x.png'; }")
    watched.page.wait_for_timeout(200)
    assert watched.page.evaluate("window.broken") is None
    assert len([text for text in watched.errors if "Content Security Policy" in text or "Trusted" in text]) >= 4
    watched.context.close()


def test_nothing_typed_is_lost(watched: Watched) -> None:
    page = watched.page
    page.fill("#input", "half a thought")
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    page.keyboard.press("Escape")
    page.reload()
    assert page.input_value("#input") == "half a thought"
    assert page.input_value("#system") == "Be brief."
    page.keyboard.press("Tab")
    watched.say("first")
    page.wait_for_function("() => document.querySelector('.message.assistant .body')?.textContent.length > 20")
    page.fill("#input", "next thought")
    page.reload()  # in mid stream
    watched.wait("failed")
    assert page.input_value("#input") == "next thought"
    assert page.locator(".message.user .body").text_content() == "first"
    assert "closed before" in page.locator(".failure").nth(1).text_content()
    page.click(".message.assistant .retry")
    watched.wait("done")
    assert watched.bodies[-1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
    ]


def test_a_failed_answer_is_kept_and_can_be_retried(quick: Watched) -> None:
    page = quick.page
    page.route(f"**{CHAT_PATH}", lambda route: route.abort())
    quick.say("Hi")
    quick.wait("failed")
    assert "can't be reached" in page.locator(".failure").nth(1).text_content()
    cut = 'data: {"choices":[{"index":0,"delta":{"content":"so far"},"finish_reason":null}]}\n\n'
    page.unroute(f"**{CHAT_PATH}")
    page.route(
        f"**{CHAT_PATH}",
        lambda route: route.fulfill(status=200, body=cut, headers={"content-type": "text/event-stream"}),
    )
    page.click(".message.assistant .retry")
    page.wait_for_function(
        "() => document.querySelector('.message.assistant .failure').textContent.includes('ended before')"
    )
    assert page.locator(".message.assistant .body").text_content() == "so far"
    page.unroute(f"**{CHAT_PATH}")
    page.click(".message.assistant .retry")
    quick.wait("done")
    assert page.locator(".message").count() == 2
    assert page.locator(".failure").nth(1).is_hidden()
    quick.errors[:] = [text for text in quick.errors if "Failed to load resource" not in text]


def test_edit_retry_and_the_controls(watched: Watched) -> None:
    page = watched.page
    page.click("#open-settings")
    page.fill("#max-tokens", "12")
    page.fill("#seed", "77")
    page.locator("#temperature").fill("0.25")
    page.keyboard.press("Escape")
    watched.say("one")
    watched.wait("done")
    watched.say("two")
    watched.wait("done", 2)
    assert watched.bodies[-1]["max_tokens"] == 12
    assert (watched.bodies[-1]["seed"], watched.bodies[-1]["temperature"]) == (77, 0.25)
    assert [message["role"] for message in watched.bodies[-1]["messages"]] == ["user", "assistant", "user"]
    assert "cut at the limit" in page.locator(".figures").nth(3).text_content().replace("\u00a0", " ")
    page.locator(".message.user").first.hover()
    page.locator(".message.user .edit").first.click()
    page.keyboard.press("End")
    page.keyboard.type(" and more")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('.message').length === 2")
    watched.wait("done")
    assert watched.bodies[-1]["messages"] == [{"role": "user", "content": "one and more"}]
    page.click("#new")
    assert page.locator(".message").count() == 0
    page.click("#undo")
    assert page.locator(".message").count() == 2


def test_a_base_model_goes_on_from_a_text(quick: Watched) -> None:
    card = '{"data": [{"id": "base", "max_model_len": 4000, "chat": false}]}'
    quick.page.route("**/v1/models", lambda route: route.fulfill(status=200, body=card))
    quick.page.reload()
    quick.page.wait_for_function("() => document.getElementById('input').placeholder === 'A text to go on from'")
    quick.say("Once upon")
    body = quick.wait("done").locator(".body").text_content()
    assert body == "All is well."
    assert quick.bodies[-1]["prompt"] == "Once upon"


def test_enter_sends_and_shift_enter_does_not(quick: Watched) -> None:
    quick.page.click("#input")
    quick.page.keyboard.type("a")
    quick.page.keyboard.press("Shift+Enter")
    quick.page.keyboard.type("b")
    assert quick.page.locator(".message").count() == 0
    quick.page.keyboard.press("Enter")
    quick.wait("done")
    assert quick.page.locator(".message.user .body").text_content() == "a\nb"


def test_it_fits_a_small_phone_and_follows_the_colour_scheme(browser: Any, brief: RunningServer) -> None:
    watched = Watched(browser, brief.url, color_scheme="dark")
    page = watched.page
    page.set_viewport_size({"width": 320, "height": 560})
    watched.say("x" * 300 + " a long word")
    watched.wait("done")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.evaluate("document.getElementById('scroll').scrollWidth") <= 320
    for name in ("#send", "#input", "#new", "#theme", "#open-settings"):
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 320 and box["y"] + box["height"] <= 560
    brightness = "parseInt(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
    assert page.evaluate(brightness) < 60
    page.emulate_media(color_scheme="light")
    assert page.evaluate(brightness) > 200
    page.click("#theme")  # the choice stays, whatever the system says
    assert page.evaluate(brightness) < 60
    page.reload()
    assert page.evaluate(brightness) < 60
    watched.settle()
    watched.context.close()


def test_every_control_has_a_name_and_the_colours_enough_contrast(quick: Watched) -> None:
    page = quick.page
    quick.say("Hi")
    quick.wait("done")
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, textarea')].filter(e => !(e.getAttribute('aria-label') ||"
        " e.labels?.length || e.textContent.trim())).map(e => e.outerHTML)"
    )
    assert unnamed == []
    assert page.locator("[role=status]").first.text_content() == "The answer is complete."
    for theme in ("light", "dark"):
        page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        for ink in ("--ink", "--soft", "--accent", "--bad"):
            for paper in ("--paper", "--raised", "--sunken", "--code", "--mine"):
                if (ink, paper) != ("--bad", "--mine"):
                    assert contrast(page, ink, paper) >= 4.5, (theme, ink, paper)
        assert contrast(page, "--bad", "--bad-paper") >= 4.5
        assert contrast(page, "--on-accent", "--accent") >= 4.5


def contrast(page: Any, one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio of two colours of the style sheet."""

    def luminance(name: str) -> float:
        text = page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('{name}')").strip()
        parts = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_key_is_asked_for_and_names_and_errors_are_text_too(browser: Any) -> None:
    evil = "<img src=x onerror=window.broken=1>"
    with running("stub:text=Welcome.", "api_key=sk-for-the-page", f"name={evil}") as server:
        watched = Watched(browser, server.url)
        page = watched.page
        page.wait_for_function("() => document.getElementById('notice').textContent.includes('API key')")
        page.click("#open-settings")
        page.fill("#key", "sk-for-the-page")
        page.keyboard.press("Escape")
        page.wait_for_function("() => document.getElementById('model').textContent !== ''")
        assert page.locator("#model").text_content() == evil
        watched.say("Hi")
        assert watched.wait("done").locator(".body").text_content() == "Welcome."
        assert "sk-for-the-page" not in page.evaluate("JSON.stringify(localStorage)")
        failure = f'{{"error": {{"message": "{evil}", "type": "x", "param": null, "code": null}}}}'
        page.route(f"**{CHAT_PATH}", lambda route: route.fulfill(status=400, body=failure))
        page.click(".message.assistant .retry")
        watched.wait("failed")
        assert page.locator(".failure").nth(1).text_content() == evil
        # The browser itself writes a line about each such status.
        watched.errors = [text for text in watched.errors if "401" not in text and "400" not in text]
        watched.settle()
        watched.context.close()
