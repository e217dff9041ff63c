"""Lines of corpus.jsonl are what the standard library writes, and their digest is that of the file."""

from __future__ import annotations

import hashlib
import io
import json

from hypothesis import given
from hypothesis import strategies as st

from fledge.data.corpus_lines import CorpusLines, quoted

texts = st.text(st.characters(exclude_categories=["Cs"])) | st.text(st.sampled_from('\\"\n\r\t\b\f\x00\x1f\x7f/é😀 n'))


@given(texts)
def test_a_text_is_quoted_as_the_standard_library_quotes_it(text):
    assert quoted(text.encode()) == json.dumps(text, ensure_ascii=False).encode()


@given(st.lists(st.tuples(texts, texts, st.sampled_from(["train", "val"])), max_size=5))
def test_lines_and_their_digest_are_those_of_json(rows):
    file = io.BytesIO()
    lines = CorpusLines(file)
    for path, text, split in rows:
        lines.write(path, text.encode(), split)
    wanted = [json.dumps({"path": p, "text": t, "split": s}, ensure_ascii=False) + "\n" for p, t, s in rows]
    assert file.getvalue() == "".join(wanted).encode()
    assert lines.sha256 == hashlib.sha256(file.getvalue()).hexdigest()
