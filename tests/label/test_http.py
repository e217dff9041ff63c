"""The labelling server's routes: what they answer, what they refuse, and that nothing of another site gets in."""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from fledge.label.app import MAX_BODY_BYTES, new_app
from fledge.label.page import PAGE_NAMES, SHARED_NAMES
from fledge.serve.access import AccessLog
from fledge.serve.guard import Guard
from tests.label.samples import Desk, make_labels, new_desk, read_items, write_rows
from tests.serve.running import error_of

REASONS = ("clearer", "safer")
TOKEN = "0123456789abcdef"


def client_of(desk: Desk, api_key: str = "", log: io.StringIO | None = None) -> TestClient:
    app = new_app(
        desk, REASONS, "ana", Guard("127.0.0.1", api_key), AccessLog("json", (api_key,), log or io.StringIO())
    )
    return TestClient(app, base_url="http://127.0.0.1:8010", raise_server_exceptions=False)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = new_desk(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def client(desk: Desk) -> TestClient:
    return client_of(desk)


def ballot(**fields: Any) -> dict[str, Any]:
    return {"annotator": "Ana", "item": 1, "choice": "a", "token": TOKEN, "seconds": 2.5, **fields}


def test_a_labelling_from_the_first_request_to_the_last(client, desk):
    assert client.get("/api/about").json() == {"annotator": "ana", "reasons": list(REASONS), "items": 6}
    state = client.get("/api/state", params={"annotator": " Ana "}).json()
    assert state["annotator"] == "ana" and state["item"]["number"] == 1 and state["last"] is None
    state = client.post("/api/vote", json=ballot(reason=" It is\0 right. ", reasons=["clearer"])).json()
    assert (state["item"]["number"], state["counts"]["done"], state["last"]) == (2, 1, 1)
    (vote,) = desk.store.votes()
    assert (vote.reason, vote.reasons, vote.seconds) == ("It is right.", ("clearer",), 2.5)
    assert client.get("/api/progress").json()["annotators"]["ana"]["done"] == 1
    state = client.post("/api/undo", json={"annotator": "ana", "vote": 1}).json()
    assert (state["item"]["number"], state["counts"]["done"]) == (1, 0)
    client.post("/api/vote", json=ballot(choice="skip", token=TOKEN + "2"))
    assert client.post("/api/again", json={"annotator": "ana"}).json()["item"]["number"] == 1


def test_a_vote_sent_twice_at_once_is_one(client, desk):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post("/api/vote", json=ballot()), range(16)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert len(desk.store.votes()) == 1


def test_another_vote_on_the_same_item_is_409(client):
    client.post("/api/vote", json=ballot())
    answer = client.post("/api/vote", json=ballot(token=TOKEN + "2"))
    assert answer.status_code == 409 and error_of(answer)["code"] == "already_judged"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"choice": "c"}, "choice"), ({"choice": None}, "choice"), ({"item": 0}, "item"), ({"item": 7}, "item"),
        ({"item": "1"}, "item"), ({"item": True}, "item"), ({"item": 10**30}, "item"), ({"token": "short"}, "token"),
        ({"token": "x" * 65}, "token"), ({"token": "ü" * 20}, "token"), ({"seconds": -1}, "seconds"),
        ({"seconds": "2"}, "seconds"), ({"reason": 3}, "reason"), ({"reason": "x" * 4001}, "reason"),
        ({"reasons": ["other"]}, "reasons"), ({"reasons": "clearer"}, "reasons"),
        ({"reasons": ["clearer", "clearer"]}, "reasons"), ({"reasons": [[]]}, "reasons"),
        ({"annotator": ""}, "annotator"), ({"annotator": "x" * 65}, "annotator"), ({"annotator": 3}, "annotator"),
        ({"vote": 1}, "vote"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_a_400_that_names_it_and_stores_nothing(client, desk, change, param):
    answer = client.post("/api/vote", json=ballot(**change))
    error = error_of(answer)
    assert answer.status_code == 400 and param in error["message"].split(":")[0], error
    assert desk.store.votes() == []


def test_seconds_beyond_a_day_are_a_day(client, desk):
    client.post("/api/vote", json=ballot(seconds=1e30))
    assert desk.store.votes()[0].seconds == 86400


@pytest.mark.parametrize("path", ["/api/vote", "/api/undo", "/api/again"])
def test_bodies_that_are_none(client, path):
    headers = {"content-type": "application/json"}
    assert client.post(path, content=b"not json", headers=headers).status_code == 400
    assert client.post(path, content=b"[1]", headers=headers).status_code == 400
    assert client.post(path, content=b'{"annotator": NaN}', headers=headers).status_code == 400
    assert client.post(path, content=b" " * (MAX_BODY_BYTES + 1), headers=headers).status_code == 413
    assert client.post(path, data={"annotator": "ana"}).status_code == 415
    assert client.post(path, json={"annotator": "ana", "odd": 1}).status_code == 400
    assert client.get(path).status_code == 405


def test_other_sites_and_other_hosts_are_refused(client, desk):
    for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}):
        assert client.post("/api/vote", json=ballot(), headers=headers).status_code == 403
    for path in ("/", "/api/state?annotator=ana", "/api/progress"):
        assert client.get(path, headers={"host": "evil.example"}).status_code == 403
    assert desk.store.votes() == []
    own = {"origin": "http://127.0.0.1:8010", "sec-fetch-site": "same-origin"}
    assert client.post("/api/vote", json=ballot(), headers=own).status_code == 200


def test_a_key_is_asked_for_where_there_is_one(desk):
    client = client_of(desk, "sk-for-labels")
    assert client.get("/").status_code == 200 and client.get("/page/label.js").status_code == 200
    for path in ("/api/about", "/api/state?annotator=ana", "/api/progress"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"authorization": "Bearer sk-for-labels"}).status_code == 200
    assert client.post("/api/vote", json=ballot()).status_code == 401


def test_the_page_has_the_policy_of_the_chat_page_and_no_other_file(client):
    for path in ("/", *(f"/page/{name}" for name in (*PAGE_NAMES, *SHARED_NAMES))):
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert "default-src 'none'; script-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["x-frame-options"] == "DENY"
    for path in ("/page/chat.html", "/page/../store.py", "/page/", "/nothing", "/docs", "/v1/models"):
        assert client.get(path).status_code == 404, path
    assert client.get("/api/state?annotator=ana").headers["cache-control"] == "no-store"


def test_prompts_and_answers_are_json_text_whatever_they_hold(tmp_path):
    evil = "<script>broken=1</script>\u2028\0'\""
    items = read_items(write_rows(tmp_path / "evil.jsonl", [{"prompt": evil, "answers": [evil + "1", evil + "2"]}]))
    desk = Desk(make_labels(str(tmp_path / "evil.db"), items, "evil.jsonl", 1))
    answer = client_of(desk).get("/api/state?annotator=ana")
    assert answer.headers["content-type"] == "application/json"
    item = answer.json()["item"]
    assert item["prompt"][0]["content"] == evil
    assert {item["a"][0]["content"], item["b"][0]["content"]} == {evil + "1", evil + "2"}


def test_a_vote_that_the_database_refuses_is_a_500_and_can_be_sent_again(desk):
    log = io.StringIO()
    client = client_of(desk, log=log)
    desk.store.run("PRAGMA query_only=ON")  # as a disk that became read-only
    answer = client.post("/api/vote", json=ballot())
    assert answer.status_code == 500 and "labels.db" not in error_of(answer)["message"]
    assert json.loads(log.getvalue().splitlines()[0])["error"] == "DataError"
    desk.store.run("PRAGMA query_only=OFF")
    assert client.post("/api/vote", json=ballot()).json()["counts"]["done"] == 1


def test_a_file_that_another_process_holds_is_waited_for(desk, client, tmp_path):
    other = sqlite3.connect(tmp_path / "labels.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(client.post, "/api/vote", json=ballot())
        assert not sent.done()
        other.execute("COMMIT")
        assert sent.result(10).status_code == 200
    other.close()
