"""The chat page's memory: several tabs, pages put aside and brought back, edits, figures, a server that is loading."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.browsing import CHAT_PATH, Watched, launched
from tests.serve.running import RunningServer, running

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running("stub:text=All is `well`.", "name=little") as started:
        yield started


@pytest.fixture(scope="module")
def opened(server: RunningServer) -> Iterator[Watched]:
    with launched() as browser:
        page = Watched(browser, server.url)
        yield page
        page.context.close()


@pytest.fixture
def watched(opened: Watched) -> Iterator[Watched]:
    opened.begin_anew()
    yield opened
    opened.settle()


def another_tab(watched: Watched) -> Any:
    tab = watched.context.new_page()
    tab.goto(watched.url)
    return tab


def kept(page: Any) -> dict[str, Any]:
    """What the browser's storage holds."""
    return json.loads(page.evaluate("localStorage.getItem('fledge.chat.1') || '{}'"))


def test_an_old_tab_that_is_closed_takes_nothing_with_it(watched: Watched) -> None:
    old = another_tab(watched)
    watched.say("Hi")
    watched.wait("done")
    old.wait_for_function("() => document.querySelectorAll('.message').length === 2")
    old.fill("#input", "half a thought")
    assert len(kept(watched.page)["messages"]) == 2
    old.close(run_before_unload=True)
    watched.page.wait_for_timeout(200)
    assert [message["content"] for message in kept(watched.page)["messages"]] == ["Hi", "All is `well`."]
    watched.page.reload()
    assert watched.page.locator(".message").count() == 2


def test_a_tab_that_saw_nothing_of_the_others_writes_nothing_as_it_goes(watched: Watched) -> None:
    old = another_tab(watched)
    old.evaluate("window.addEventListener('storage', (event) => event.stopImmediatePropagation(), true)")
    value = json.dumps({"messages": [{"role": "user", "content": "from elsewhere", "state": "done"}]})
    old.evaluate("(value) => localStorage.setItem('fledge.chat.1', value)", value)
    old.goto("about:blank")
    assert kept(watched.page)["messages"][0]["content"] == "from elsewhere"
    old.close()


def test_a_tab_in_mid_edit_keeps_its_edit_when_another_writes(watched: Watched) -> None:
    watched.say("Hi")
    watched.wait("done")
    watched.page.locator(".message.user").hover()
    watched.page.click(".message.user .edit")
    watched.page.keyboard.type(" there")
    other = another_tab(watched)
    other.fill("#input", "a draft")
    watched.page.wait_for_timeout(100)
    assert watched.page.input_value(".editor textarea").endswith(" there")
    other.close()


@pytest.mark.parametrize("events", ["beforeunload", "pagehide pageshow"])
def test_a_page_that_did_not_go_still_tells_of_failures(watched: Watched, events: str) -> None:
    """A navigation that was called off, and a page that the browser put aside and brought back."""
    watched.page.route(f"**{CHAT_PATH}", lambda route: route.abort())
    for name in events.split():
        kind = "Event" if name == "beforeunload" else "PageTransitionEvent"
        watched.page.evaluate(f"window.dispatchEvent(new {kind}('{name}'))")
    watched.say("Hi")
    watched.wait("failed")
    watched.errors[:] = [text for text in watched.errors if "Failed to load resource" not in text]


def test_a_page_brought_back_in_mid_answer_says_that_it_was_cut_off(watched: Watched) -> None:
    """Its stream may have failed while nobody was there to be told."""
    value = json.dumps(
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "so f", "state": "streaming"},
            ]
        }
    )
    watched.page.evaluate("(value) => localStorage.setItem('fledge.chat.1', value)", value)
    watched.page.evaluate("window.dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    failure = watched.wait("failed").locator(".failure")
    assert "closed before" in failure.text_content()


def test_a_retry_ends_an_edit(watched: Watched) -> None:
    watched.say("Hi")
    watched.wait("done")
    watched.page.locator(".message.user").hover()
    watched.page.click(".message.user .edit")
    watched.page.keyboard.type(" there")
    assert kept(watched.page)["editing"]["text"] == "Hi there"
    watched.page.click(".message.assistant .retry")
    watched.wait("done")
    assert kept(watched.page)["editing"] is None
    assert watched.page.locator(".editor").count() == 0


def test_an_edit_of_an_answer_is_not_taken_up(watched: Watched) -> None:
    """Kept by an earlier version, or left over from a conversation that is gone."""
    watched.say("Hi")
    watched.wait("done")
    for index, n_editors in ((0, 1), (1, 0), (7, 0)):
        state = {**kept(watched.page), "editing": {"index": index, "text": "changed"}}
        watched.page.evaluate("(value) => localStorage.setItem('fledge.chat.1', value)", json.dumps(state))
        watched.page.reload()
        assert watched.page.locator(".editor").count() == n_editors


TIMED = """(texts) => {
  const encoder = new TextEncoder();
  const send = (controller, value) => controller.enqueue(encoder.encode(`data: ${JSON.stringify(value)}\\n\\n`));
  const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
  window.fetch = async () => new Response(new ReadableStream({
    async start(controller) {
      for (const content of texts) {
        send(controller, { choices: [{ index: 0, delta: { content }, finish_reason: null }] });
        await pause(200);
      }
      await pause(800);
      send(controller, { choices: [{ index: 0, delta: {}, finish_reason: "stop" }] });
      send(controller, { choices: [], usage: { prompt_tokens: 6, completion_tokens: 101 } });
      controller.enqueue(encoder.encode("data: [DONE]\\n\\n"));
      controller.close();
    },
  }));
}"""


def test_tokens_a_second_are_of_tokens_and_of_the_time_they_took(watched: Watched) -> None:
    """Three pieces of text 200 ms apart are 101 tokens: 250 a second at most. The pause at the end doesn't count."""
    watched.page.evaluate(TIMED, ["one", "two", "three"])
    watched.say("Hi")
    watched.wait("done")
    figures = kept(watched.page)["messages"][1]["figures"]
    assert figures["tokens"] == 101
    assert 100 < figures["rate"] <= 260


def test_a_page_opened_while_the_model_loads_learns_its_context_later(watched: Watched) -> None:
    page = watched.page
    early = json.dumps({"data": [{"id": "little", "chat": True}]})
    page.route("**/v1/models", lambda route: route.fulfill(status=200, body=early))
    page.reload()
    page.wait_for_function("() => document.getElementById('model').textContent === 'little'")
    assert page.locator("#totals").text_content() == ""
    page.unroute("**/v1/models")
    watched.say("Hi")
    watched.wait("done")
    page.wait_for_function("() => document.getElementById('totals').textContent.includes('of 512')")


def test_what_the_server_says_of_itself_is_shown(watched: Watched) -> None:
    page = watched.page
    refusal = json.dumps({"error": {"message": "The server is shutting down.", "code": "draining"}})
    page.route("**/v1/models", lambda route: route.fulfill(status=503, body=refusal))
    page.reload()
    page.wait_for_function("() => document.getElementById('notice').textContent === 'The server is shutting down.'")
    watched.errors[:] = [text for text in watched.errors if "503" not in text]


RENDERED = """async (source) => {
  const { render } = await import("/page/markdown.js");
  const node = document.createElement("div");
  const began = performance.now();
  render(node, source);
  return [performance.now() - began, node.innerHTML];
}"""
N = 20_000
HOSTILE = {
    "heading of spaces": "# a" + " " * N + "b",
    "heading of marks": "# " + "# " * N + "b",
    "heading of lines": "#" + " " * N + "\u2028" + " " * N,
    "fence": "``" + "`" * N + " x" * N + "`",
    "fence of spaces": "```" + " " * N + "x" * N + "`",
    "rule": "* " * N + "x",
    "item": "-" + " " * N + "\u2028",
    "table": "a|b\n" + " " * N + "-" + " " * N + "x",
    "table of columns": "a|b\n" + "|-" * N + "x",
    "backticks": ("`" * 50 + "a") * (N // 50),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_takes_time_in_proportion_to_the_text(watched: Watched, name: str) -> None:
    milliseconds, _ = watched.page.evaluate(RENDERED, HOSTILE[name])
    assert milliseconds < 1000


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("# One", "<h3>One</h3>"),
        ("## Two ##  ", "<h4>Two</h4>"),
        ("### C#", "<h5>C#</h5>"),
        ("# #", "<h3></h3>"),
        ("#none", "<p>#none</p>"),
        ("```py x\na\n```", '<span>py</span>'),
        ("``` a`b", "``` a`b"),
        ("~~~\na\n~~~", "<code>a</code>"),
        ("a|b\n-|:-:\n1|2", "<th>a</th><th>b</th>"),
        ("a|b\n-|x", "<p>a|b"),
        ("a ``b` c`` d", "<code>b` c</code>"),
        ("a ``b` c", "<p>a ``b` c</p>"),
    ],
)  # fmt: skip
def test_markdown_is_still_markdown(watched: Watched, source: str, expected: str) -> None:
    _, written = watched.page.evaluate(RENDERED, source)
    assert expected in written
