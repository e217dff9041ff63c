"""A labelling that is killed loses at most the vote in flight; one that is stopped says what it has."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from pathlib import Path

import httpx

from fledge.label.places import open_labels
from fledge.label.store import Vote
from tests.label.running import Labelling, labelling
from tests.label.samples import pairs, write_rows


def send_votes(server: Labelling, first: int, answered: list[str]) -> None:
    """Vote on one item after the other until the server is gone; `answered` grows by each that was answered."""
    for item in range(first, 4_000):
        token = f"token{item:012d}"
        ballot = {"annotator": "ana", "item": item, "choice": "a", "token": token, "seconds": 1.0}
        try:
            answer = server.client.post("/api/vote", json=ballot)
        except httpx.HTTPError:
            return
        assert answer.status_code == 200, answer.text
        answered.append(token)


def lost(answered: list[str], stored: list[Vote]) -> list[str]:
    """Votes that were answered and aren't there."""
    there = {vote.token for vote in stored}
    return [token for token in answered if token not in there]


def stored_in(path: Path) -> list[Vote]:
    store = open_labels(str(path))
    try:
        return store.votes()
    finally:
        store.close()


def test_killed_at_any_moment_it_loses_at_most_the_vote_in_flight(tmp_path):
    rows, out = write_rows(tmp_path / "pairs.jsonl", pairs(4_000)), tmp_path / "labels.db"
    draw, answered = random.Random(4), []
    for _ in range(2):
        with labelling(rows, out) as server:
            before = len(answered)
            first = server.client.get("/api/state", params={"annotator": "ana"}).json()["item"]["number"]
            assert first - 1 in (before, before + 1)
            answered += [f"token{first - 1:012d}"] * (first - 1 - before)  # in flight at the kill, and stored
            voting = threading.Thread(target=send_votes, args=(server, first, answered))
            voting.start()
            time.sleep(draw.uniform(0.2, 0.6))
            server.process.send_signal(signal.SIGKILL)
            voting.join()
        assert len(answered) > before
        stored = stored_in(out)
        assert lost(answered, stored) == []
        assert len(stored) - len(answered) in (0, 1)


def test_a_vote_that_is_lost_is_found(tmp_path):
    """The control: what is asked of a killed labelling can fail."""
    with labelling(write_rows(tmp_path / "pairs.jsonl", pairs(3)), tmp_path / "labels.db") as server:
        answered: list[str] = []
        ballot = {"annotator": "ana", "item": 1, "choice": "a", "token": "token000000000001"}
        assert server.client.post("/api/vote", json=ballot).status_code == 200
        answered += ["token000000000001", "token000000000002"]
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    assert lost(answered, stored_in(tmp_path / "labels.db")) == ["token000000000002"]


def test_a_labelling_that_is_stopped_ends_well_and_leaves_one_file(tmp_path):
    rows, out = write_rows(tmp_path / "pairs.jsonl", pairs(3)), tmp_path / "labels.db"
    with labelling(rows, out, "annotator=Ana", "api_key=sk-1") as server:
        assert server.url.endswith("/#key=sk-1")
        server.client.headers["authorization"] = "Bearer sk-1"
        assert server.client.get("/api/about").json()["annotator"] == "ana"
        server.client.post("/api/vote", json={"annotator": "ana", "item": 1, "choice": "tie", "token": "0" * 16})
        code, out_text = server.stop()
    assert code == 0
    result = json.loads(out_text.splitlines()[-1])
    assert (result["pairs"], result["votes"], result["new_votes"]) == (3, 1, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.db", "pairs.jsonl"]
