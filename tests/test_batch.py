"""Rows of several batches as one: the inverse of cutting, and sources of packed rows beside their targets."""

from __future__ import annotations

from dataclasses import replace

import torch

from fledge.batch import PADDING, Batch, OneDocument, Packed, Padded, Tokens, join_rows, padded, slice_rows


def packed_rows(rows: list[list[int]], row_tokens: int) -> tuple[Tokens, Packed]:
    """Rows of documents of these lengths, ids counted through, the rest padding."""
    ids, doc, pos = (torch.zeros(len(rows), row_tokens, dtype=torch.int64) for _ in range(3))
    doc[:] = PADDING
    bounds = [0]
    for b, lengths in enumerate(rows):
        at = 0
        for number, n in enumerate(lengths):
            ids[b, at : at + n] = torch.arange(1 + at, 1 + at + n) + 100 * b
            doc[b, at : at + n], pos[b, at : at + n] = number, torch.arange(n)
            at += n
            bounds.append(b * row_tokens + at)
        if at < row_tokens:
            bounds.append((b + 1) * row_tokens)
    return Tokens(ids, pos, doc), Packed(tuple(bounds), max(b - a for a, b in zip(bounds, bounds[1:], strict=False)))


def batch_of(tokens: Tokens, layout, **more: object) -> Batch:
    names = tuple(f"r{n}" for n in range(len(tokens.ids)))
    return Batch(tokens, tokens.ids + 1, (tokens.doc != PADDING).float(), layout, names, **more)  # type: ignore[arg-type]


def documents(tokens: Tokens, layout) -> list[list[list[int]]]:
    """The ids of each document of each row, as the layout bounds them, padding left out."""
    n_rows, n = tokens.ids.shape
    if isinstance(layout, OneDocument):
        layout = Padded((n,) * n_rows)
    if isinstance(layout, Padded):
        return [[row[:length].tolist()] for row, length in zip(tokens.ids, layout.lengths, strict=True)]
    found: list[list[list[int]]] = [[] for _ in range(n_rows)]
    for a, b in zip(layout.cu_seqlens, layout.cu_seqlens[1:], strict=False):
        if int(tokens.doc.flatten()[a]) != PADDING:
            found[a // n].append(tokens.ids.flatten()[a:b].tolist())
    return found


def n_bounded(layout: Packed, n_rows: int, row_tokens: int) -> list[int]:
    """Documents of each row, padding counted."""
    return [sum(edge in range(b * row_tokens + 1, (b + 1) * row_tokens + 1) for edge in layout.cu_seqlens)
            for b in range(n_rows)]  # fmt: skip


PACKED = batch_of(*packed_rows([[3, 2], [6], [1, 1, 3]], 6))
PADDED = batch_of(*padded([[7, 8], [9, 10, 11, 12]]))
WHOLE = batch_of(padded([[5, 6, 7], [2, 3, 4]])[0], OneDocument())


def test_joined_rows_hold_the_documents_of_their_parts_in_the_order_asked_for():
    for parts in ((PACKED, PADDED), (PADDED, WHOLE), (WHOLE, PACKED), (WHOLE, WHOLE)):
        wanted = [row for part in parts for row in documents(part.tokens, part.layout)]
        order = [3, 0, 2, 1, 4][: len(wanted)]
        joined = join_rows(parts, order, pad_id=99)
        assert documents(joined.tokens, joined.layout) == [wanted[row] for row in order]
        names = [name for part in parts for name in part.sample_ids]
        assert list(joined.sample_ids) == [names[row] for row in order]
        assert torch.equal(joined.weight > 0, joined.tokens.doc != PADDING)
    assert isinstance(join_rows((WHOLE, WHOLE)).layout, OneDocument)
    assert isinstance(join_rows((PADDED, WHOLE)).layout, Padded)


def test_joining_what_was_cut_gives_the_batch_back():
    for batch in (PACKED, PADDED, WHOLE):
        cut = [slice_rows(batch, n, n + 1) for n in range(len(batch.targets))]
        joined = join_rows(cut)
        assert joined.layout == batch.layout and joined.sample_ids == batch.sample_ids
        for name in ("ids", "pos", "doc"):
            assert torch.equal(getattr(joined.tokens, name), getattr(batch.tokens, name))
        assert torch.equal(joined.targets, batch.targets) and torch.equal(joined.weight, batch.weight)


def test_documents_of_packed_sources_stand_beside_their_targets():
    """A source that fills its row and a target that doesn't would else differ by a document of padding."""
    several = replace(batch_of(*packed_rows([[2, 2]], 8)), source=packed_rows([[3, 2]], 8))
    one = replace(batch_of(*padded([[7, 8]])), source=padded([[1, 2, 3, 4, 5, 6, 7, 8]]))
    for parts in ((several, one), (one, several)):
        joined = join_rows(parts)
        assert joined.source is not None
        (source, reading), layout = joined.source, joined.layout
        assert isinstance(layout, Packed) and isinstance(reading, Packed)
        counts = n_bounded(layout, 2, joined.targets.shape[1])
        assert counts == n_bounded(reading, 2, source.ids.shape[1]) and sorted(counts) == [2, 3]
        assert [len(row) for row in documents(source, reading)] == [len(r) for r in documents(joined.tokens, layout)]
    assert one.source is not None and one.source[0].ids.shape[1] == 8  # the control: it filled the row


def test_labels_and_kinds_go_with_their_rows():
    kinds = replace(PADDED, tokens=replace(PADDED.tokens, kind=torch.ones(2, 4, dtype=torch.int64)))
    a, b = (replace(part, answers=torch.tensor(labels)) for part, labels in ((kinds, [0, 1]), (WHOLE, [2, 3])))
    joined = join_rows((a, b), [2, 0, 3, 1])
    assert joined.answers is not None and joined.answers.tolist() == [2, 0, 3, 1]
    assert joined.tokens.kind is not None and joined.tokens.kind[:, 0].tolist() == [0, 1, 0, 1]


def test_columns_go_with_their_rows():
    """Float columns of tokens: sliced, joined in any order, filled with 0 where a row is shorter, moved."""
    parts = []
    for width, start in ((2, 0.0), (3, 10.0)):
        tokens, layout = padded([[1] * width, [2] * width])
        column = start + torch.arange(2.0 * width).reshape(2, width)
        parts.append(Batch(tokens, tokens.ids, torch.ones(2, width), layout, columns={"old": column}))
    joined = join_rows(parts, [2, 0, 3, 1])
    assert joined.columns["old"].tolist() == [[10, 11, 12], [0, 1, 0], [13, 14, 15], [2, 3, 0]]
    assert slice_rows(joined, 1, 3).columns["old"].tolist() == [[0, 1, 0], [13, 14, 15]]
    assert joined.to(torch.device("meta")).columns["old"].is_meta
