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
WORDS = ("water", "stone", "bread", "light", "wind", "oven", "garden", "letter")


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


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("clean", [True, False], ids=["spaces joined", "spaces kept"])
def test_pieces_that_a_user_defined_give_sentencepiece_s_ids_and_text(kind, clean, tmp_path):
    """Runs of spaces among them, as models of code have; also in texts with runs, which are cut with more care."""
    import sentencepiece

    lines = [f"the {word} of {word} and {other}ing" for word in WORDS for other in WORDS]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "m"), model_type=kind, vocab_size=150,
        hard_vocab_limit=False, user_defined_symbols=["<tag>", "\u2581\u2581", "  ", "foo"], minloglevel=3,
        remove_extra_whitespaces=clean, normalization_rule_name="nfkc",
    )  # fmt: skip
    tokenizer = loaded(tmp_path / "m.model")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    spaced = (
        "the<tag>  of   and  foo and",
        "a\u2581\u2581b",
        "\u2581\u25817",
        "x    y",
        "ooo<tag>ooo",
        "aaaa the  of aaaa",
    )
    for text in (*spaced, *(f"{line} <tag>foo  {line}" for line in lines)):
        ids = theirs.encode(text)
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == theirs.decode(ids), text
