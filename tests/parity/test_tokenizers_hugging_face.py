"""BERT's, GPT-2's, Llama 2's and T5's vocabularies give Hugging Face's ids and texts."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from fledge.text.tokenizer import Tokenizer
from tests.text.published import loaded
from tests.text.samples import random_texts

LONG = {
    "bert_uncased": "bert-base-uncased",
    "gpt2": "distilgpt2",
    "llama": "coreml-projects/Llama-2-7b-chat-coreml",
    "t5_base": "t5-base",
}


@pytest.fixture(scope="module")
def t5(data_file, tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("t5")
    raw = gzip.decompress(data_file("conf_tokenizers/t5_small/tokenizer.json.gz").read_bytes())
    (folder / "tokenizer.json").write_bytes(raw)
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def bert_vocab(data_file, tmp_path_factory) -> Path:
    """BERT's vocab.txt. The data set's copy has its special tokens in small letters; the original has capitals."""
    text = data_file("conf_tokenizers/bert_base_uncased/vocab.txt").read_text(encoding="utf-8")
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text(re.sub(r"^\[(?:unk|cls|sep|mask)\]$", lambda found: found[0].upper(), text, flags=re.MULTILINE))
    return path


@pytest.fixture(scope="module")
def hugging_face(data_file, t5, bert_vocab) -> dict[str, Tokenizer]:
    """The vocabularies of the published cases, by the names that these use."""
    bert = loaded(bert_vocab)
    return {
        "bert-base-uncased": bert,
        "google-bert/bert-base-uncased": bert,
        "distilgpt2": loaded(data_file("conf_tokenizers/gpt2/encoder.json")),
        "coreml-projects/Llama-2-7b-chat-coreml": loaded(data_file("conf_tokenizers/llama2/tokenizer.model")),
        "t5-base": t5,
    }


def test_hugging_face_s_cases(hugging_face, data_file):
    """Ids with their special tokens, and both decoded texts. The original cleans up what BERT, GPT-2 and T5 decode."""
    cases = json.loads(data_file("conf_hf_tokenizer_cases/tokenizer_tests.json").read_text(encoding="utf-8"))
    assert {name: len(rows) for name, rows in cases.items()} == dict.fromkeys(hugging_face, 18)
    for name, rows in cases.items():
        tokenizer, llama = hugging_face[name], "Llama" in name
        for row in rows:
            ids = tokenizer.encode(row["input"])
            framed = (tokenizer.bos_id, *ids) if llama else tokenizer.frame(ids).ids
            assert list(framed) == row["encoded"]["input_ids"], (name, row["input"])
            without = tokenizer.decode(framed, cleaned=not llama)
            assert without == row["decoded_without_special"], (name, row["input"])


@pytest.mark.parametrize("name", LONG)
def test_hugging_face_s_long_cases(name, hugging_face, data_file):
    tokenizer = hugging_face[LONG[name]]
    file = "gpt2_encoded_tokens" if name == "gpt2" else f"{name}_encoded"
    case = json.loads(data_file(f"conf_hf_tokenizer_cases/{file}.json").read_text(encoding="utf-8"))
    ids = tokenizer.encode(case["text"])
    wanted = case["token_ids"]
    whole = [tokenizer.bos_id, *ids] if name == "llama" else ids
    assert [tokenizer.token_of(i) for i in ids] == [t for t in case["bpe_tokens"] if t not in ("<s>", "</s>")]
    assert wanted in (whole, list(tokenizer.frame(ids).ids)) or wanted == ids


def test_bert_s_words_and_pieces_of_all_squad_questions(hugging_face, data_file):
    tokenizer = hugging_face["bert-base-uncased"]

    def read(name: str) -> list:
        return json.loads(gzip.decompress(data_file(f"conf_hf_tokenizer_cases/{name}.json.gz").read_bytes()))

    questions, wanted = read("question_tokens"), read("tokenized_questions")
    assert len(questions) == len(wanted) == 10_570
    found = tokenizer.encode_batch([question["original"] for question in questions])
    assert found == wanted
    assert [[tokenizer.token_of(i) for i in ids] for ids in found] == [q["wordpiece"] for q in questions]


def bert_oracle(vocab: Path, lower: bool):
    from transformers import BertTokenizer

    tokens = {line: i for i, line in enumerate(vocab.read_text(encoding="utf-8").splitlines())}
    return BertTokenizer(vocab=tokens, do_lower_case=lower)


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("n", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_bert_s_vocab_txt_gives_transformers_ids_and_text(lower, n, bert_vocab, tmp_path):
    (tmp_path / "vocab.txt").write_bytes(bert_vocab.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    tokenizer, theirs = Tokenizer.load(tmp_path), bert_oracle(bert_vocab, lower)
    for text in random_texts(n, seed=22):
        ids = tokenizer.encode(text)
        assert list(tokenizer.frame(ids).ids) == theirs(text)["input_ids"], text
        assert tokenizer.decode(ids) == theirs.backend_tokenizer.decode(ids, skip_special_tokens=True), text


@pytest.mark.parametrize("n", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_unigram_tokenizer_json_gives_the_library_s_ids_and_text(n, t5):
    import tokenizers

    theirs = tokenizers.Tokenizer.from_str(t5.file.text)
    for text in random_texts(n, seed=23):
        ids = t5.encode(text)
        assert list(t5.frame(ids).ids) == theirs.encode(text).ids, text
        assert t5.decode(ids) == theirs.decode(ids), text
