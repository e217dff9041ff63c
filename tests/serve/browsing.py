"""A real Chromium on the chat page, and what tests do with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHAT_PATH = "/v1/chat/completions"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--no-first-run"]  # fmt: skip


@contextmanager
def launched() -> Iterator[Any]:
    """The browser; skips the test where there is none."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("FLEDGE_TEST_ALL"):
            pytest.fail("no Chromium", pytrace=False)
        pytest.skip("no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield started
        started.close()


class Watched:
    """A page, with everything that should not happen on it counted."""

    def __init__(self, browser: Any, url: str, **options: Any):
        self.url = url
        self.context = browser.new_context(viewport={"width": 1000, "height": 800}, reduced_motion="reduce", **options)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.foreign: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append("dialog"), dialog.dismiss()))
        self.page.on("request", self.note)
        self.page.goto(url)

    def begin_anew(self) -> None:
        """As a browser that has never been here: quicker than a new one."""
        self.page.unroute_all()
        self.page.goto("about:blank")  # the page keeps its state as it leaves, so leave first
        line = self.context.new_cdp_session(self.page)
        line.send("Storage.clearDataForOrigin", {"origin": self.url, "storageTypes": "local_storage"})
        line.detach()
        for kept in (self.errors, self.foreign, self.bodies):
            kept.clear()
        self.page.goto(self.url)

    def note(self, request: Any) -> None:
        if not request.url.startswith(self.url):
            self.foreign.append(request.url)
        if request.url.endswith("/completions"):
            self.bodies.append(request.post_data_json)

    def say(self, text: str) -> None:
        self.page.fill("#input", text)
        self.page.keyboard.press("Enter")

    def wait(self, state: str, number: int = 1) -> Any:
        """The `number`th answer, once it is in `state`."""
        rows = self.page.locator(".message.assistant").nth(number - 1)
        self.page.wait_for_function(
            "([n, state]) => document.querySelectorAll('.message.assistant')[n - 1]?.classList.contains(state)",
            arg=[number, state],
        )
        return rows

    def settle(self) -> None:
        assert self.errors == []
        assert self.foreign == []
        assert self.page.evaluate("window.broken") is None
