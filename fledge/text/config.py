"""Configuration of the tokenizer verbs, and the choice of a chat format. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fledge.errors import ConfigError

ChatFormatName = Literal[
    "", "fledge", "chatml", "qwen2", "qwen2.5", "llama-3", "llama-2", "mistral-v0.1", "mistral-v0.2", "gemma", "phi-3",
    "phi-3.5", "alpaca", "vicuna",
]  # fmt: skip


@dataclass(frozen=True)
class ChatConfig:
    """How conversations are written."""

    format: ChatFormatName = ""
    """A chat format by name, whose template goes into the folder; empty: the folder's own template, else the format
    whose special tokens the tokenizer has."""


@dataclass(frozen=True)
class ReadingConfig:
    """What of a source is read as text: one rule for corpora, tokenizers and evaluation."""

    text_field: str = "text"
    """Where JSON lines, Parquet and Arrow hold the text; dots lead inwards (`message.content`, `turns.0.text`)."""
    html: Literal["text", "raw"] = "text"
    """HTML as the text that a reader sees, without menus and scripts, or raw, as it is written."""
    max_document_bytes: int = 256 << 20
    """A document of more bytes is a bad row; memory holds a few times the largest document."""
    max_bad_share: float = 0.05
    """Bad rows are left out and counted; where they are more than this share of all, reading ends with an error."""

    def __post_init__(self) -> None:
        if not self.text_field or "" in self.text_field.split("."):
            raise ConfigError(f"text_field: expected names with dots between them, got {self.text_field!r:.40}")
        if not 1 <= self.max_document_bytes <= 1 << 32:
            raise ConfigError(f"max_document_bytes: expected 1..{1 << 32}, got {self.max_document_bytes}")
        if not 0 <= self.max_bad_share <= 1:
            raise ConfigError(f"max_bad_share: expected 0..1, got {self.max_bad_share}")


@dataclass(frozen=True)
class TokenizerTrainConfig:
    """Train a tokenizer on text."""

    text: Path
    """A folder written by `data build` (its training split is read), or a folder or file of text in any form that
    `data build` reads, but on this machine."""
    out: Path
    """Folder to write: tokenizer.json, tokenizer_config.json and card.json."""
    kind: Literal["bpe", "wordpiece", "unigram", "word", "characters", "bytes"] = "bpe"
    """bpe: byte-level BPE; wordpiece: BERT's, with ## pieces; unigram: SentencePiece's, for scripts without spaces
    too; word: the most frequent words; characters: one id per character; bytes: the 256 bytes, nothing learned."""
    vocab_size: int = 8192
    """Number of ids in all, the special tokens included; not for characters and bytes."""
    pattern: Literal["gpt2", "llama3", "qwen2", "o200k"] = "gpt2"
    """Which characters may share a token: the published split pattern of that model; for bpe only."""
    lowercase: bool = False
    """Drop case and accents, as BERT's uncased models do; for wordpiece only."""
    lossless: bool = True
    """Decoding gives every text back; else text is normalised (NFKC, single spaces); for unigram only."""
    limit_bytes: int = 0
    """Read whole documents up to about this many UTF-8 bytes; 0 reads all."""
    special_tokens: bool | None = None
    """Add <|bos|>, <|eos|>, <|pad|> and the chat roles; without a value: yes, but for characters
    and wordpiece, which has [PAD] [UNK] [CLS] [SEP] [MASK]. With chat.format that format's tokens, for every kind."""
    chat: ChatConfig = field(default_factory=ChatConfig)
    reading: ReadingConfig = field(default_factory=ReadingConfig)

    def __post_init__(self) -> None:
        if self.chat.format and self.special_tokens is False:
            raise ConfigError("special_tokens: expected true for a chat.format, whose tokens they are, got false")
        if not 1 <= self.vocab_size <= 1 << 20:
            raise ConfigError(f"vocab_size: expected 1..{1 << 20}, got {self.vocab_size}")
        if self.limit_bytes < 0:
            raise ConfigError(f"limit_bytes: expected 0 or more, got {self.limit_bytes}")


@dataclass(frozen=True)
class TokenizerConvertConfig:
    """Write a tokenizer of any form in another that gives the same ids."""

    tokenizer: Path
    """What to read: a folder or file of tokenizer.json, SentencePiece, tiktoken, GPT-2, BERT or GGUF."""
    out: Path
    """Folder to write."""
    form: Literal["tokenizer.json", "gpt2", "bert", "sentencepiece", "tiktoken", "gguf"] = "tokenizer.json"
    """gpt2: vocab.json and merges.txt; bert: vocab.txt; sentencepiece: tokenizer.model; tiktoken: tokenizer.tiktoken;
    gguf: the vocabulary without a model."""
    chat: ChatConfig = field(default_factory=ChatConfig)


@dataclass(frozen=True)
class TokenizerEncodeConfig:
    """Show the ids of a text."""

    tokenizer: Path
    """A tokenizer, model, dataset or run folder, or a file that holds a tokenizer."""
    text: str | None = None
    """The text; - reads standard input; a bare -- stands before one with an equals sign. What spells a special token
    stays text."""
    file: str | None = None
    """A UTF-8 file to read the text from instead; - is standard input."""
    frame: bool = False
    """Put the special tokens around the ids that the tokenizer's own file asks for, such as [CLS] and [SEP]."""


@dataclass(frozen=True)
class TokenizerDecodeConfig:
    """Show the text of ids."""

    tokenizer: Path
    """A tokenizer, model, dataset or run folder, or a file that holds a tokenizer."""
    ids: tuple[str, ...] = ()
    """The ids, as words or with commas between them; - reads standard input."""
    file: str | None = None
    """A file to read the ids from instead; - is standard input."""
    special: bool = False
    """Write special tokens too, by their names; without it they are left out."""


@dataclass(frozen=True)
class TokenizerRenderConfig:
    """Show how a conversation is written for a model, and which of its tokens are trained on."""

    tokenizer: Path
    """A tokenizer, model, dataset or run folder, or a file that holds a tokenizer; its chat template counts."""
    conversations: Path
    """A file of conversations, as `fledge sft` reads them."""
    row: int = 1
    """Which conversation of the file, from 1."""
    prompt: bool = False
    """Leave the last answer out and end where the model's would begin, as `fledge serve` renders it."""
    chat: ChatConfig = field(default_factory=ChatConfig)

    def __post_init__(self) -> None:
        if self.row < 1:
            raise ConfigError(f"row: expected 1 or more, got {self.row}")


@dataclass(frozen=True)
class TokenizerReportConfig:
    """Compare tokenizers on texts: bytes per token, fertility, unused entries, how words are split."""

    tokenizer: str
    """A tokenizer folder or tokenizer.json, or `bytes`; several with commas between them."""
    text: Path
    """What to measure on: a text file, a folder of text, a folder written by `data build`, or JSON lines."""
    split: Literal["train", "val", "all"] = "all"
    """Which documents of a folder written by `data build` to read."""
    words: tuple[str, ...] = ("strawberry",)
    """Words whose pieces are shown."""
    out: Path | None = None
    """Also write the comparison as a self-contained page: a file ending in .html."""
    limit_bytes: int = 0
    """Read whole documents up to about this many UTF-8 bytes; 0 reads all."""

    def __post_init__(self) -> None:
        if self.limit_bytes < 0:
            raise ConfigError(f"limit_bytes: expected 0 or more, got {self.limit_bytes}")
        if self.out is not None and self.out.suffix != ".html":
            raise ConfigError(f"out: expected a file ending in .html, got {self.out}")
