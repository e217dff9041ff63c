"""The pool of cache blocks: counted, kept while of use, reused in order, laid out in runs."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.engine.blocks import BlockPool
from fledge.engine.prefix import Content, PrefixIndex, chain_key, root_key


def content(*tokens: int, parent: bytes = root_key("")) -> Content:
    return Content(chain_key(parent, tokens), parent, tokens)


def taken(pool: BlockPool, n: int) -> list[int]:
    blocks: list[int] = []
    for i in range(n):
        blocks.append(pool.take(blocks[-1] if blocks else None, n - i))
    return blocks


def test_documents_that_grow_side_by_side_have_runs_of_blocks():
    pool = BlockPool(24)
    one, two, three = [pool.take(None, 8)], [pool.take(None, 8)], [pool.take(None, 8)]
    for left in range(7, 0, -1):
        for blocks in (one, two, three):
            blocks.append(pool.take(blocks[-1], left))
    for blocks in (one, two, three):
        assert blocks == list(range(blocks[0], blocks[0] + 8))
    assert sorted(one + two + three) == list(range(24)) and pool.n_available == 0


def test_the_smallest_stretch_that_holds_a_document_is_taken():
    pool = BlockPool(12)
    blocks = taken(pool, 12)
    for block in (1, 2, 5, 6, 7, 10):
        pool.release(blocks[block])
    assert taken(pool, 3) == [5, 6, 7]
    assert taken(pool, 2) == [1, 2]


def test_what_nobody_holds_stays_until_no_block_is_free_and_the_least_recently_used_goes_first():
    pool = BlockPool(4)
    blocks = taken(pool, 3)
    for number, block in enumerate(blocks):
        pool.index.add(block, content(number))
    for block in blocks:
        pool.release(block)
    assert (pool.n_free, len(pool.idle), pool.n_held) == (1, 3, 0)
    pool.hold(blocks[0])
    pool.release(blocks[0])  # used again: the youngest now
    assert pool.take(None, 1) == 3 and pool.n_evicted == 0
    assert pool.take(None, 1) == blocks[1] and pool.index.find(content(1)) is None
    assert pool.index.find(content(0)) == blocks[0] and pool.n_evicted == 1


def test_a_block_with_two_holders_outlives_one_of_them():
    pool = BlockPool(2)
    (block,) = taken(pool, 1)
    pool.index.add(block, content(7))
    pool.hold(block)
    pool.release(block)
    assert pool.n_held == 1 and not pool.idle
    pool.release(block)
    assert pool.n_held == 0 and list(pool.idle) == [block]
    pool.forget_all()
    assert (pool.n_free, len(pool.idle)) == (2, 0) and pool.index.find(content(7)) is None


def test_equal_keys_of_unequal_contents_are_no_hit():
    index = PrefixIndex()
    index.add(0, content(1, 2))
    assert index.find(content(1, 2)) == 0
    assert index.find(Content(content(1, 2).key, root_key(""), (1, 3))) is None
    assert index.find(Content(content(1, 2).key, b"another parent", (1, 2))) is None


def test_a_key_names_everything_up_to_its_block_and_who_may_share_it():
    roots = {root_key("a", "1"), root_key("b", "1"), root_key("a", "2"), root_key("a1", ""), root_key("", "a1")}
    assert len(roots) == 5
    keys = {chain_key(root, (1, 2)) for root in roots} | {chain_key(root_key("a", "1"), (2, 1))}
    assert len(keys) == 6


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 99)), max_size=60))
def test_every_block_is_held_idle_or_free_whatever_happens(steps):
    pool, held, n_known = BlockPool(7), [], 0
    for action, number in steps:
        if action <= 1 and pool.n_available:
            held.append(pool.take(held[-1] if held and action else None, 1 + number % 4))
        elif action == 2 and held:
            block = held.pop(number % len(held))
            pool.release(block)
        elif action == 3 and held and not pool.index.knows(held[number % len(held)]):
            pool.index.add(held[number % len(held)], content(n_known))
            n_known += 1
        elif action == 4 and pool.idle:
            block = list(pool.idle)[number % len(pool.idle)]
            pool.hold(block)
            held.append(block)
        assert pool.n_held == len(set(held)) and pool.n_held + len(pool.idle) + pool.n_free == 7
        assert pool.n_free == int(pool.free.sum()) and not pool.free[held].any()
        assert all(pool.index.knows(block) and not pool.holders[block] for block in pool.idle)
    for block in held:
        pool.release(block)
    assert pool.n_held == 0 and not any(pool.holders)
