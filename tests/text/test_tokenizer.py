"""Tokenizer: what goes in comes out, text stays text, files round-trip, the fast paths give the same ids."""

from __future__ import annotations

import functools
import json
import pickle
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.errors import TokenizerError
from fledge.text import fast
from fledge.text.llama2c import from_llama2c
from fledge.text.special_tokens import SPECIAL_TOKENS
from fledge.text.tokenizer import Tokenizer, byte_level, characters, from_text
from tests.text.samples import PATTERNS, random_texts, small_bpe, source_text


@functools.cache
def every_kind() -> dict[str, Tokenizer]:
    return {
        "gpt2": small_bpe("gpt2"),
        "llama3": small_bpe("llama3"),
        "bytes": byte_level(),
        "characters": characters(source_text(), SPECIAL_TOKENS),
    }


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=st.text())
def test_bpe_decodes_to_the_text_it_encoded(pattern, text):
    tokenizer = small_bpe(pattern)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=st.text())
def test_bytes_are_their_own_ids(text):
    assert byte_level().encode(text) == list(text.encode())


def test_characters_are_numbered_by_code_point_and_lossless_on_their_own_text():
    text = "To be,\r\n\tor not\u00a0to be? 🎉 é\n\n"
    tokenizer = characters(text)
    alphabet = sorted(set(text))
    assert tokenizer.encode(text) == [alphabet.index(character) for character in text]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == len(alphabet) + 1


def test_an_unknown_character_decodes_to_the_replacement_character():
    tokenizer = characters("abc")
    assert tokenizer.encode("axc") == [0, tokenizer.special["unk"], 2]
    assert tokenizer.decode([0, tokenizer.special["unk"], 2]) == "a\ufffdc"


def test_special_tokens_stand_after_all_ordinary_ids():
    for tokenizer in (small_bpe("gpt2"), byte_level()):
        ids = [tokenizer.id_of(token) for token in SPECIAL_TOKENS]
        assert ids == list(range(tokenizer.vocab_size - len(SPECIAL_TOKENS), tokenizer.vocab_size))
        assert tokenizer.stop_ids == (tokenizer.eos_id, tokenizer.end_id)


@pytest.mark.parametrize("name", every_kind())
def test_encoding_adds_no_bos_and_no_eos(name):
    tokenizer = every_kind()[name]
    assert not any(tokenizer.is_special(i) for i in tokenizer.encode("plain text"))


@pytest.mark.parametrize("name", every_kind())
def test_text_that_spells_a_special_token_stays_text(name):
    tokenizer = every_kind()[name]
    for token in SPECIAL_TOKENS:
        text = f"say {token}{token} now"
        for ids in (tokenizer.encode(text), tokenizer.encode_batch([text])[0], tokenizer.encode_array(text).tolist()):
            assert not any(tokenizer.is_special(i) for i in ids)
            assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", every_kind())
def test_a_trusted_template_gets_its_special_tokens(name):
    tokenizer = every_kind()[name]
    ids = tokenizer.encode("<|user|>a<|end|>", parse_special=True)
    assert ids == [tokenizer.id_of("<|user|>"), *tokenizer.encode("a"), tokenizer.end_id]


def test_special_tokens_are_left_out_of_decoded_text_unless_asked_for():
    tokenizer = small_bpe()
    ids = [tokenizer.bos_id, *tokenizer.encode("hé"), tokenizer.eos_id]
    assert tokenizer.decode(ids) == "hé"
    assert tokenizer.decode(ids, skip_special=False) == "<|bos|>hé<|eos|>"
    assert tokenizer.token_bytes(tokenizer.bos_id) == b"" and tokenizer.token_of(tokenizer.bos_id) == "<|bos|>"


def test_the_bytes_of_tokens_join_to_the_bytes_of_the_text():
    for text in random_texts(200):
        tokenizer = small_bpe()
        assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()


def test_decoding_leaves_out_an_unfinished_character_but_shows_invalid_bytes():
    tokenizer = byte_level()
    assert tokenizer.decode(list("né".encode())[:-1]) == "n"
    assert tokenizer.decode([0x61, 0xFF, 0x62]) == "a\ufffdb"


def test_ids_outside_of_the_vocabulary_decode_to_nothing():
    tokenizer = byte_level()
    assert tokenizer.decode([104, -1, 10**12, 105]) == "hi"
    assert tokenizer.token_of(10**12) == ""


def test_a_lone_surrogate_is_refused():
    for tokenizer in every_kind().values():
        for call in (tokenizer.encode, tokenizer.encode_array, lambda text, t=tokenizer: t.encode_batch([text])):
            with pytest.raises(TokenizerError, match="lone surrogate at character 2"):
                call("ab\ud800")


@pytest.mark.parametrize("name", every_kind())
def test_a_saved_tokenizer_is_the_same_when_loaded(name, tmp_path):
    tokenizer = every_kind()[name]
    tokenizer.save(tmp_path / "a")
    loaded = Tokenizer.load(tmp_path / "a")
    bare = Tokenizer.load(tmp_path / "a" / "tokenizer.json")
    assert loaded.digest == tokenizer.digest and bare.special == tokenizer.special == loaded.special
    for text in random_texts(100):
        assert loaded.encode(text) == tokenizer.encode(text)
    loaded.save(tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()


def test_other_merges_or_special_tokens_give_another_digest():
    digests = {t.digest for t in (small_bpe("gpt2"), small_bpe("llama3"), byte_level(), byte_level(()))}
    assert len(digests) == 4


def test_run_and_dataset_folders_lead_to_their_tokenizer(tmp_path):
    byte_level().save(tmp_path / "run" / "model")
    byte_level().save(tmp_path / "dataset" / "tokenizer")
    assert Tokenizer.load(tmp_path / "run").digest == Tokenizer.load(tmp_path / "dataset").digest


def test_a_tokenizer_crosses_to_another_process():
    tokenizer = small_bpe()
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.digest == tokenizer.digest and copy.encode("héllo") == tokenizer.encode("héllo")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("quick", [True, False])
def test_arrays_hold_the_ids_of_lists(pattern, quick, monkeypatch):
    tokenizer = from_text(small_bpe(pattern).file.text)
    if not quick:
        monkeypatch.setitem(tokenizer.__dict__, "quick", None)
    else:
        assert tokenizer.quick is not None, "tiktoken was not used"
    for text in [*random_texts(3000, seed=1), "", "\n", " " * 50, "a\n" * 3, source_text()]:
        assert tokenizer.encode_array(text).tolist() == tokenizer.encode(text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_long_texts_are_cut_only_where_no_id_changes(pattern, monkeypatch):
    import fledge.text.fast

    monkeypatch.setattr(fledge.text.fast, "PIECE_CHARACTERS", 3)
    tokenizer = from_text(small_bpe(pattern).file.text)
    monkeypatch.setitem(tokenizer.__dict__, "quick", None)
    rng = random.Random(2)
    for _ in range(2000):
        text = "".join(
            rng.choice(("\n", "\n", "a", "Z", "7", " ", ".", "!", "\r", "é", "中", "\t", "\x1c", "\u2028"))
            for _ in range(24)
        )
        assert tokenizer.encode_array(text).tolist() == tokenizer.encode(text)


def test_cutting_anywhere_would_change_ids():
    tokenizer = small_bpe()
    text = source_text()[:2000]
    apart = [i for start in range(0, len(text), 7) for i in tokenizer.encode(text[start : start + 7])]
    assert apart != tokenizer.encode(text)


def test_tiktoken_is_not_used_where_it_would_give_other_ids():
    """`abc` is made of `ab` + `c` alone, which the earlier merge of `bc` prevents; tiktoken looks it up whole."""
    base = byte_level(())
    tree = json.loads(base.file.text)
    tree["model"]["vocab"].update({"bc": 256, "ab": 257, "abc": 258})
    tree["model"]["merges"] = [["b", "c"], ["a", "b"], ["ab", "c"]]
    tokenizer = from_text(json.dumps(tree))
    assert tokenizer.encode("abc") == [97, 256]
    assert tokenizer.quick is None
    assert tokenizer.encode_array("abc").tolist() == [97, 256]


def test_long_runs_of_space_do_not_stop_the_fast_path():
    tokenizer = small_bpe()
    text = "x" + " " * 300_000 + "y"
    assert tokenizer.encode_array(text).tolist() == tokenizer.encode(text)


def test_the_name_that_tiktoken_is_given_as_a_special_token_is_text():
    tokenizer = small_bpe()
    for text in (fast.NO_TEXT, f"a{fast.NO_TEXT}é{fast.NO_TEXT * 2}", fast.NO_TEXT[:-1] + "\u00e9"):
        assert tokenizer.encode_array(text).tolist() == tokenizer.encode(text)
    allowed = np.frombuffer(tokenizer.quick.buffer_of(fast.NO_TEXT, frozenset({fast.NO_TEXT})), np.uint32)
    assert len(allowed) == 1 < len(tokenizer.encode(fast.NO_TEXT)), "the control: allowed, it would be one id"


def foreign_tree() -> dict:
    """A byte-level file whose model itself joins the letters of its control token, and where a tool tag is `text`."""
    tree = json.loads(byte_level(()).file.text)
    vocab, merges = tree["model"]["vocab"], tree["model"]["merges"]
    for left, right in (("<", "s"), ("<s", ">")):
        vocab[left + right] = len(vocab)
        merges.append([left, right])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tree["added_tokens"] = [
        {"id": vocab["<s>"], "content": "<s>", "special": True, **flags},
        {"id": len(vocab), "content": "<tool_call>", "special": False, **flags},
        {"id": len(vocab) + 1, "content": "<h1>", "special": False, **flags},
    ]
    tree["pre_tokenizer"]["use_regex"] = False
    return tree


def test_a_control_token_that_merges_would_spell_is_still_text():
    tokenizer = from_text(json.dumps(foreign_tree()))
    ids = tokenizer.encode("a<s>b<s>")
    assert tokenizer.id_of("<s>") not in ids and tokenizer.decode(ids) == "a<s>b<s>"
    assert tokenizer.encode_array("a<s>b<s>").tolist() == ids
    assert tokenizer.plain.encode("<s>").ids == [tokenizer.id_of("<s>")], "the control: merges do spell it"


def test_markup_that_a_file_calls_text_is_control():
    tokenizer = from_text(json.dumps(foreign_tree()))
    number = tokenizer.id_of("<tool_call>")
    assert tokenizer.is_special(number) and number not in tokenizer.encode("x<tool_call>y")
    assert number in tokenizer.encode("x<tool_call>y", parse_special=True)
    assert tokenizer.id_of("<h1>") in tokenizer.encode("x<h1>y"), "a tag of HTML is text with a token of its own"
    assert tokenizer.decode(tokenizer.encode("x<h1>y<tool_call>")) == "x<h1>y<tool_call>"


@pytest.mark.parametrize("spelling", ["<s>", {"content": "<s>", "lstrip": False}])
def test_special_tokens_are_read_as_text_or_object_and_may_be_missing(spelling, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(foreign_tree()))
    config = {"bos_token": spelling, "pad_token": None, "auto_map": {"AutoTokenizer": ["x.py", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.bos_id == tokenizer.id_of("<s>") and tokenizer.eos_id is None and tokenizer.stop_ids == ()
    tokenizer.save(tmp_path / "out")
    assert "auto_map" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())


def test_truncation_padding_and_added_bos_of_a_file_change_no_id():
    tree = json.loads(byte_level().file.text)
    tree["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    tree["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_id": 1, "pad_type_id": 0, "pad_token": "x"}
    tree["padding"]["pad_to_multiple_of"] = None
    assert from_text(json.dumps(tree)).encode("four") == list(b"four")


def test_the_chat_template_of_a_folder_is_kept(tmp_path):
    byte_level().save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.load(tmp_path).template == "D"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert Tokenizer.load(tmp_path).template == "J"


def test_kinds_that_cannot_be_encoded_with_are_refused_by_name():
    tree = json.loads(byte_level().file.text)
    tree["model"] = {"type": "Morfessor", "vocab": {"a": 0}, "unk_token": "a"}
    with pytest.raises(TokenizerError, match="Morfessor"):
        from_text(json.dumps(tree))


def test_a_missing_file_says_where(tmp_path):
    with pytest.raises(TokenizerError, match=r"expected a tokenizer.json, .* a folder with one of them; found none"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [bytes(range(256)), b"", b"plain words\n", b"\n\nlines"])
def test_a_file_that_is_no_tokenizer_is_told_what_is_read(content, tmp_path):
    (tmp_path / "weights.bin").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"weights.bin: expected a tokenizer.json, a SentencePiece .model, .*gguf"):
        Tokenizer.load(tmp_path / "weights.bin")
    (tmp_path / "some.model").write_bytes(content)
    with pytest.raises(TokenizerError, match="SentencePiece model|damaged"):
        Tokenizer.load(tmp_path / "some.model")


def test_sentencepiece_folders_keep_or_drop_the_first_space_as_their_decoder_says(data_file):
    tokenizer = from_llama2c(data_file("ckpt_stories260K/tok512.bin"))
    assert tokenizer.drops_first_space and tokenizer.decode(tokenizer.encode("  two")) == "  two"
    tree = json.loads(tokenizer.file.text)
    tree["decoder"]["decoders"].pop()
    assert from_text(json.dumps(tree)).decode(tokenizer.encode("  two")) == "   two"


def test_added_tokens_behind_a_gap_keep_their_ids():
    tree = json.loads(byte_level().file.text)
    for place, entry in enumerate(tree["added_tokens"]):
        entry["id"] = 300 + 10 * place
    tree["model"]["vocab"]["far"] = 290  # and one in the model itself
    tokenizer = from_text(json.dumps(tree))
    ids = tokenizer.encode("a<|eos|>b<|end|>", parse_special=True)
    assert ids == [97, 310, 98, 360] == [97, tokenizer.eos_id, 98, tokenizer.end_id]
    assert tokenizer.decode(ids, skip_special=False) == "a<|eos|>b<|end|>"
    assert tokenizer.token_of(305) == "" and tokenizer.token_bytes(305) == b""


def test_the_rules_of_a_sentencepiece_model_are_part_of_the_digest(data_file):
    tokenizer = Tokenizer.load(data_file("conf_tokenizers/seqio/sentencepiece.model"))
    rules = {**tokenizer.config["sentencepiece"], "remove_extra_whitespaces": False}
    other = from_text(tokenizer.file.text, {**tokenizer.config, "sentencepiece": rules})
    assert other.encode("a  b") != tokenizer.encode("a  b") and other.digest != tokenizer.digest
    with pytest.raises(TokenizerError, match="each true or false"):
        from_text(tokenizer.file.text, {"sentencepiece": {"add_dummy_prefix": 1}})


@pytest.mark.parametrize("before", [0, 1, 2499, 3000])
def test_a_long_run_of_space_is_found_wherever_it_begins(before):
    for n in (4999, 5000, 7501):
        assert fast.has_long_space("x" * before + " \n" * (n // 2) + " " * (n % 2) + "y" * 100) == (n >= 5000)
    assert not fast.has_long_space("a b " * 5000)


def pieces_tree(byte_flags: bool) -> dict:
    """A file in the form of Gemma's: BPE over pieces that falls back to bytes, with runs of spaces as added tokens."""
    names = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "\u2581\u2581",
        "\n\n",
        *(f"<0x{b:02X}>" for b in range(256)),
        *"\u2581ab",
    ]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [i for i, name in enumerate(names) if i < 6 or byte_flags and name.startswith("<0x")]
    model = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    space = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": names[i], "special": i < 4 or i > 5, **flags} for i in added],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "decoder": {"type": "Sequence", "decoders": [space, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {**model, "vocab": {name: i for i, name in enumerate(names)}, "merges": [["\u2581", "\u2581"]]},
    }


@pytest.mark.parametrize("byte_flags", [False, True], ids=["bytes are pieces", "bytes listed as special"])
def test_added_tokens_of_a_piece_model_decode_as_its_pieces_do(byte_flags):
    tokenizer = from_text(json.dumps(pieces_tree(byte_flags)))
    for text in ("a  b    a", "  a\n\nb", "aé\t你"):
        ids = tokenizer.encode(text)
        assert ids == tokenizer.trusted.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text == tokenizer.trusted.decode(ids, skip_special_tokens=False)
    assert tokenizer.decode(tokenizer.encode("<0x41><eos>")) == "<0x41><eos>"
    assert tokenizer.is_special(1) and not tokenizer.is_special(6 + 0x41)


def test_a_byte_spelled_by_a_user_is_text_beside_no_other_control_token():
    tree = pieces_tree(byte_flags=True)
    tree["added_tokens"] = [entry for entry in tree["added_tokens"] if entry["content"].startswith("<0x")]
    tokenizer = from_text(json.dumps(tree))
    assert tokenizer.decode(tokenizer.encode("a<0x0A>b")) == "a<0x0A>b"
