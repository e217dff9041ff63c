"""Training WordPiece, Unigram and word tokenizers by Hugging Face's trainers. Byte-level BPE is in `train.py`.

Each reads an iterator of texts; memory is bounded by the distinct words of the text, and the text by the kind's budget,
beyond which a sample from everywhere is learnt from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from fledge.errors import ConfigError, TokenizerError
from fledge.text import vocab_files
from fledge.text.sentencepiece_model import BYTE, NORMAL, UNKNOWN, Piece, PieceModel
from fledge.text.sentencepiece_tree import tree_of
from fledge.text.special_tokens import SPECIAL_TOKENS, special_entries
from fledge.text.special_tokens import UNKNOWN as UNKNOWN_TOKEN
from fledge.text.tokenizer import Tokenizer, assemble, from_text, our_config
from fledge.text.training_text import feed, feed_knowing_characters

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDPIECE_BUDGET = WORDS_BUDGET = 4 << 30  # bytes of text; memory goes by its distinct words
UNIGRAM_BUDGET = 64 << 20  # the trainer holds every distinct word in a suffix array
PREFIX = "##"  # of a piece that continues a word
LONGEST_PIECE = 16  # characters, SentencePiece's default
SCORE_DIGITS = 6  # the library adds scores in an order of chance; what it changes is below this
LEAST_COUNT = 2  # a pair seen once is no regularity


def train_wordpiece(
    texts: Iterable[str],
    vocab_size: int,
    lowercase: bool = False,
    special: Sequence[str] = (),
    n_bytes: int = 0,
) -> Tokenizer:
    """WordPiece of `vocab_size` ids at most: `[PAD] [UNK] [CLS] [SEP] [MASK]`, characters, `##` pieces, then the
    `special` tokens. `lowercase`: without case and accents, as BERT's uncased models. Equal texts give an equal
    tokenizer; they wait in a temporary file until their characters are known. Raises ConfigError for a size without
    room. Source: Devlin et al. 2018; the pieces are chosen by count, as the `tokenizers` library does."""
    n_ordinary = room(vocab_size, len(special), len(BERT_SPECIAL) + 1)
    learner = tokenizers.Tokenizer(models.BPE())
    learner.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet: list[str] = []

    def trainer_for(characters: str) -> trainers.BpeTrainer:
        # The library's own trainer for WordPiece does the same, but numbers the `##` characters by chance and so breaks
        # ties by chance; those that it is given as special tokens keep their order.
        single = sorted({c for c in learner.normalizer.normalize_str(characters) if not c.isspace()})
        alphabet.extend([*single, *(PREFIX + character for character in single if continues_a_word(character))])
        return trainers.BpeTrainer(
            vocab_size=n_ordinary - len(BERT_SPECIAL),
            min_frequency=LEAST_COUNT,
            show_progress=False,
            continuing_subword_prefix=PREFIX,
            special_tokens=alphabet,
        )

    def continues_a_word(character: str) -> bool:  # marks and Chinese characters are words of their own
        return len(learner.pre_tokenizer.pre_tokenize_str(learner.normalizer.normalize_str("a" + character))) == 1

    feed_knowing_characters(learner, trainer_for, texts, WORDPIECE_BUDGET, n_bytes)
    found: dict[str, int] = json.loads(learner.to_str())["model"]["vocab"]
    tokens = [*BERT_SPECIAL, *alphabet, *sorted(found, key=found.__getitem__)]
    kept = list(dict.fromkeys(tokens))[:n_ordinary]
    text, config = vocab_files.bert_source(kept, {"do_lower_case": lowercase}, "trainer")
    return with_special(text, config, special)


def train_unigram(
    texts: Iterable[str],
    vocab_size: int,
    lossless: bool = True,
    special: Sequence[str] = SPECIAL_TOKENS,
    n_bytes: int = 0,
) -> Tokenizer:
    """Unigram of `vocab_size` ids at most: `<|unk|>`, the 256 bytes if `lossless`, pieces by falling score, then the
    `special` tokens. Text isn't cut beforehand, so scripts without spaces work. The library breaks ties between pieces
    by chance: equal texts give equally good tokenizers, not always equal ones.

    `lossless`: decoding gives every text back; spaces stay spaces and what has no piece is bytes. Else text is
    normalised (NFKC, spaces at the ends dropped, runs of them one), a space is U+2581, and what has no piece is
    unknown. Raises ConfigError for a size without room. Source: Kudo 2018 (arXiv 1804.10959)."""
    n_bytes_pieces = 256 if lossless else 0
    n_ordinary = room(vocab_size, len(special), 1 + n_bytes_pieces + 1)
    n_pieces = n_ordinary - 1 - n_bytes_pieces
    learner = tokenizers.Tokenizer(models.Unigram())
    if lossless:
        learner.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r" ?\S+|\s"), "isolated")
    else:
        learner.normalizer = tokenizers.normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(tokenizers.Regex(r"\s+"), " ")]
        )
        learner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=n_pieces + 1,
        show_progress=False,
        special_tokens=["<unk>"],
        unk_token="<unk>",
        max_piece_length=LONGEST_PIECE,
    )
    try:
        feed(learner, trainer, texts, UNIGRAM_BUDGET, n_bytes)
    except TokenizerError as error:
        if "not large enough" not in str(error):
            raise
        raise ConfigError(
            f"vocab_size: expected room for each character of the text beside {n_ordinary - n_pieces + len(special)} "
            f"fixed ids, got {vocab_size}; ask for more ids, or for kind bpe, which begins with bytes"
        ) from None
    scored = json.loads(learner.to_str())["model"]["vocab"][1:]
    # the least likely go first where single characters alone are too many
    ranked = sorted(((float(np.float32(round(score, SCORE_DIGITS))), piece) for piece, score in scored), key=order)
    pieces = [Piece(piece, score, NORMAL) for score, piece in ranked[:n_pieces]]
    if not pieces:
        raise TokenizerError("unigram: expected text with words to learn from, found none; check the corpus")
    if lossless:
        return lossless_unigram(pieces, special)
    return normalising_unigram(pieces, json.loads(learner.to_str()), special)


def order(entry: tuple[float, str]) -> tuple[float, str]:
    return -entry[0], entry[1]


def lossless_unigram(pieces: Sequence[Piece], special: Sequence[str]) -> Tokenizer:
    known = [Piece(UNKNOWN_TOKEN, 0.0, UNKNOWN), *(Piece(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256))]
    taken = {piece.text for piece in known}
    model = PieceModel(
        pieces=(*known, *(piece for piece in pieces if piece.text not in taken)),
        byte_fallback=True,
        bos_id=-1,
        eos_id=-1,
        remove_extra_whitespaces=False,
        escape_whitespaces=False,
    )
    text, config = tree_of(model, "trainer")
    return with_special(text, config, special)


def normalising_unigram(pieces: Sequence[Piece], learnt: dict[str, Any], special: Sequence[str]) -> Tokenizer:
    vocab = [[UNKNOWN_TOKEN, 0.0], *([piece.text, piece.score] for piece in pieces)]
    parts = {
        "normalizer": learnt["normalizer"],
        "pre_tokenizer": learnt["pre_tokenizer"],
        "decoder": {**learnt["pre_tokenizer"], "type": "Metaspace"},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": False},
    }
    tree = {**vocab_files.EMPTY, **parts, "added_tokens": special_entries((UNKNOWN_TOKEN,), 0)}
    config = our_config((UNKNOWN_TOKEN,))
    return with_special(json.dumps(tree, ensure_ascii=False, indent=1), config, special)


def train_words(
    texts: Iterable[str], vocab_size: int, special: Sequence[str] = SPECIAL_TOKENS, n_bytes: int = 0
) -> Tokenizer:
    """The most frequent words and marks, `vocab_size` ids at most: by falling count, then `<|unk|>` and the `special`
    tokens. A word is a run of letters, digits and underscores; every other run of visible characters is a mark.
    Decoding puts a space between all of them. Raises ConfigError for a size without room."""
    n_ordinary = room(vocab_size, len(special) + 1, 1)
    learner = tokenizers.Tokenizer(models.WordLevel(unk_token=UNKNOWN_TOKEN))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=n_ordinary, show_progress=False, special_tokens=[])
    feed(learner, trainer, texts, WORDS_BUDGET, n_bytes)
    found: dict[str, int] = json.loads(learner.to_str())["model"]["vocab"]
    words = [word for word in sorted(found, key=found.__getitem__) if word not in (UNKNOWN_TOKEN, *special)]
    if not words:
        raise TokenizerError("word: expected text with words to learn from, found none; check the corpus")
    vocab = {word: number for number, word in enumerate([*words, UNKNOWN_TOKEN])}
    parts = {
        "pre_tokenizer": {"type": "Whitespace"},
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": UNKNOWN_TOKEN},
    }
    return assemble(parts, len(words), (UNKNOWN_TOKEN, *special))


def room(vocab_size: int, n_special: int, least: int) -> int:
    """Ids left for what is learnt and the fixed ones. Raises ConfigError if fewer than `least`."""
    if vocab_size - n_special < least:
        raise ConfigError(f"vocab_size: expected at least {least + n_special}, got {vocab_size}")
    return vocab_size - n_special


def with_special(text: str, config: dict[str, Any], special: Sequence[str]) -> Tokenizer:
    """A tokenizer.json with our special tokens behind its ids."""
    tree = json.loads(text)
    vocab = tree["model"]["vocab"]
    fresh = tuple(token for token in special if token not in {entry["content"] for entry in tree["added_tokens"]})
    tree["added_tokens"] += special_entries(fresh, len(vocab))
    roles = {key: value for key, value in our_config(special).items() if key.endswith("_token")}
    return from_text(json.dumps(tree, ensure_ascii=False, indent=1), {**config, **roles})
