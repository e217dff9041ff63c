"""The queue: blinded, each annotator's own, safe to repeat."""

from __future__ import annotations

import threading

import pytest

from fledge.errors import RequestError
from fledge.label.blind import first_shown_won, swapped, unblinded
from fledge.label.desk import Ballot, Conflict, Desk, clean_name
from tests.label.samples import new_desk, new_store, say


def test_the_order_is_a_fair_coin_for_each_item_and_annotator_and_stays():
    orders = {name: [swapped("7", name, item) for item in range(2000)] for name in ("ana", "bo")}
    for order in orders.values():
        assert 900 < sum(order) < 1100
    same = sum(a == b for a, b in zip(orders["ana"], orders["bo"], strict=True))
    assert 900 < same < 1100
    assert orders["ana"] == [swapped("7", "ana", item) for item in range(2000)]
    assert orders["ana"] != [swapped("8", "ana", item) for item in range(2000)]


@pytest.mark.parametrize("swap", [False, True])
def test_a_choice_is_stored_as_of_the_answer_whatever_stood_left(swap):
    left = "second" if swap else "first"
    assert unblinded("a", swap) == left and unblinded("b", swap) != left
    assert unblinded("tie", swap) == "tie" and unblinded("skip", swap) == "skip"
    assert first_shown_won(unblinded("a", swap), swap) is True
    assert first_shown_won(unblinded("b", swap), swap) is False
    assert first_shown_won("tie", swap) is None


def test_what_is_shown_tells_nothing_of_the_file(tmp_path):
    desk = new_desk(tmp_path, 40)
    shown = [desk.shown("ana", number) for number in range(1, 41)]
    assert {frozenset(item) for item in shown} == {frozenset(["number", "prompt", "a", "b"])}
    assert {len(item["a"]) for item in shown} == {1}
    good_left = [item["a"][0]["content"].startswith("Good") for item in shown]
    assert 8 < sum(good_left) < 32
    assert good_left == [not swapped("7", "ana", number) for number in range(1, 41)]
    assert "seed" not in desk.state("ana")


def test_each_annotator_has_the_whole_queue(tmp_path):
    desk = new_desk(tmp_path, 2)
    assert say(desk, "ana", 1, "good")["item"]["number"] == 2
    assert desk.state("bo")["item"]["number"] == 1
    done = say(desk, "ana", 2, "tie")
    assert done["item"] is None
    assert done["counts"] == {"items": 2, "done": 2, "ties": 1, "skipped": 0}
    assert desk.state("bo")["counts"]["done"] == 0


def test_the_same_vote_twice_is_one(tmp_path):
    desk = new_desk(tmp_path)
    first = say(desk, "ana", 1, "good", token="x")
    assert say(desk, "ana", 1, "good", token="x") == first
    assert len(desk.store.votes()) == 1


def test_another_vote_on_a_judged_item_is_refused(tmp_path):
    desk = new_desk(tmp_path)
    say(desk, "ana", 1, "good", token="x")
    with pytest.raises(Conflict) as judged:
        say(desk, "ana", 1, "bad", token="y")
    with pytest.raises(Conflict) as used:
        say(desk, "bo", 1, "bad", token="x")
    assert (judged.value.code, used.value.code) == ("already_judged", "token_used")
    assert [vote.choice for vote in desk.store.votes()] == ["first"]


def test_undo_gives_the_item_back_and_votes_can_be_undone_one_by_one(tmp_path):
    desk = new_desk(tmp_path)
    for item in (1, 2, 3):
        state = say(desk, "ana", item, "good")
    state = desk.undo("ana", state["last"])
    assert (state["item"]["number"], state["last"], state["counts"]["done"]) == (3, 2, 2)
    state = desk.undo("ana", state["last"])
    assert (state["item"]["number"], state["last"]) == (2, 1)
    state = say(desk, "ana", 2, "bad", token="anew")
    assert state["item"]["number"] == 3 and state["last"] == 4
    assert [vote.choice for vote in desk.store.votes()] == ["first", "second"]


def test_an_undo_sent_twice_takes_one_vote_back(tmp_path):
    desk = new_desk(tmp_path)
    say(desk, "ana", 1, "good")
    last = say(desk, "ana", 2, "good")["last"]
    assert desk.undo("ana", last) == desk.undo("ana", last)
    assert [vote.item for vote in desk.store.votes()] == [1]


def test_a_vote_that_was_undone_and_comes_again_late_stays_undone(tmp_path):
    desk = new_desk(tmp_path)
    desk.undo("ana", say(desk, "ana", 1, "good", token="late")["last"])
    assert say(desk, "ana", 1, "good", token="late")["item"]["number"] == 1
    assert desk.store.votes() == []


def test_only_ones_own_last_vote_can_be_undone(tmp_path):
    desk = new_desk(tmp_path)
    first = say(desk, "ana", 1, "good")["last"]
    say(desk, "ana", 2, "good")
    with pytest.raises(Conflict, match="only the last one"):
        desk.undo("ana", first)
    with pytest.raises(RequestError, match="expected one of yours, got 1"):
        desk.undo("bo", first)


def test_skipped_items_come_again_when_they_are_asked_for(tmp_path):
    desk = new_desk(tmp_path, 3)
    for item, verdict in ((1, "skip"), (2, "good"), (3, "skip")):
        state = say(desk, "ana", item, verdict)
    assert state["item"] is None and state["counts"]["skipped"] == 2
    state = desk.again("ana")
    assert state["item"]["number"] == 1 and state["counts"]["done"] == 1


def test_an_item_that_is_not_there_is_refused(tmp_path):
    desk = new_desk(tmp_path, 2)
    with pytest.raises(RequestError, match="item: expected 1..2, got 3"):
        desk.vote(Ballot("ana", 3, "a", "x"))


def test_votes_from_many_threads_are_each_counted_once(tmp_path):
    desk = new_desk(tmp_path, 30)

    def work(name: str) -> None:
        for item in range(1, 31):
            say(desk, name, item, "good")
            say(desk, name, item, "good")

    threads = [threading.Thread(target=work, args=(name,)) for name in ("ana", "bo", "cy", "ana")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    votes = desk.store.votes()
    assert len(votes) == 90 and len({(vote.annotator, vote.item) for vote in votes}) == 90
    assert {vote.choice for vote in votes} == {"first"}


def test_two_servers_on_one_file_hear_one_vote_on_an_item(tmp_path):
    here, there = new_desk(tmp_path), Desk(new_store(tmp_path))
    say(here, "ana", 1, "good")
    with pytest.raises(Conflict):
        say(there, "ana", 1, "bad", token="there")
    assert there.state("ana")["item"]["number"] == 2


@pytest.mark.parametrize(("typed", "name"), [(" Ana  Maria ", "ana maria"), ("ÅSA", "åsa"), ("A\u030asa", "åsa")])
def test_names_that_look_alike_are_one(typed, name):
    assert clean_name(typed) == name


@pytest.mark.parametrize("typed", ["", "  ", "x" * 65, "a\x07", "a\u202eb"])
def test_a_name_that_is_none_is_refused(typed):
    with pytest.raises(RequestError, match="annotator: expected a name"):
        clean_name(typed)
