"""SentencePiece's `.model` files give its ids and its text on random text."""

from __future__ import annotations

import pytest

from tests.text.published import loaded
from tests.text.samples import random_texts, spelling_texts

PIECE_MODELS = (
    "llama2/tokenizer.model",
    "mistral/tokenizer.model.v1",
    "sentencepiece_test/test_model.model",
    "seqio/sentencepiece.model",
)


@pytest.mark.parametrize("name", PIECE_MODELS)
@pytest.mark.parametrize("n", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_sentencepiece_model_gives_sentencepiece_s_ids_and_text(name, n, data_file):
    import sentencepiece

    path = data_file(f"conf_tokenizers/{name}")
    tokenizer = loaded(path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    made = [*random_texts(n, seed=21), *spelling_texts(n // 5, seed=21)]
    texts = [text for text in made if "\0" not in text]  # a zero byte ends a text there
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids == theirs.encode(text), text
        assert tokenizer.decode(ids) == theirs.decode(ids), text


def test_sentencepiece_s_ids_need_its_own_way_with_a_text(data_file):
    """The control: through the normalizer that the `tokenizers` library has, some ids differ."""
    path = data_file("conf_tokenizers/sentencepiece_test/test_model.model")
    tokenizer = loaded(path)
    texts = random_texts(1000, seed=21)
    library = [tokenizer.trusted.encode(text, add_special_tokens=False).ids for text in texts]
    assert library != tokenizer.encode_batch(texts)
