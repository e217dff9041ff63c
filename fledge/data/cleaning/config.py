"""Configuration of cleaning: which steps, in which order, and the options of each. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fledge.config import to_dict
from fledge.errors import ConfigError

StepName = Literal[
    "repair",
    "boilerplate",
    "length",
    "repetition",
    "symbols",
    "language",
    "personal",
    "contamination",
    "near_duplicates",
]
PersonalKind = Literal["email", "phone", "ip", "card", "iban", "key"]
PERSONAL: tuple[PersonalKind, ...] = ("key", "email", "iban", "card", "ip", "phone")


def check_share(name: str, value: float, low: float = 0.0) -> None:
    if not low <= value <= 1:
        raise ConfigError(f"{name}: expected {low:g} to 1, got {value:g}")


def check_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise ConfigError(f"{name}: expected at least {least:g}, got {value:g}")


@dataclass(frozen=True)
class RepairConfig:
    """What `repair` mends."""

    mojibake: bool = True
    """Mend UTF-8 that was read as Windows-1252 or Latin-1 (`cafÃ©`)."""
    controls: bool = True
    """Take out control characters and byte-order marks; lone surrogates become U+FFFD."""
    newlines: bool = True
    """Every kind of line end becomes a line feed."""
    nfc: bool = False
    """Compose characters (Unicode NFC)."""


@dataclass(frozen=True)
class BoilerplateConfig:
    """Which lines `boilerplate` takes out."""

    documents: int = 10
    """A line that stands in at least this many documents is boilerplate."""
    share: float = 0.001
    """... and in at least this share of all documents."""
    words: int = 4
    """Shorter lines are taken out only at the beginning and end of a document, where menus and notices stand."""
    phrase_documents: int = 2
    """A line with one of `phrases` is boilerplate when it stands in this many documents."""
    phrases: tuple[str, ...] = (
        "terms of use",
        "privacy policy",
        "cookie policy",
        "uses cookies",
        "use of cookies",
        "use cookies",
        "all rights reserved",
    )
    """What notices say (the first six are C4's); case doesn't count."""

    def __post_init__(self) -> None:
        check_least("documents", self.documents, 2)
        check_least("phrase_documents", self.phrase_documents, 1)
        check_share("share", self.share)
        check_least("words", self.words, 0)


@dataclass(frozen=True)
class LengthConfig:
    """Which documents `length` keeps."""

    least_words: int = 50
    """Shorter documents are dropped (Gopher: 50)."""
    most_words: int = 100_000
    """Longer documents are dropped (Gopher: 100,000; 0: no limit)."""
    least_characters: int = 0
    """Shorter documents are dropped."""
    most_characters: int = 0
    """Longer documents are dropped (0: no limit)."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_least(name, value, 0)


@dataclass(frozen=True)
class RepetitionConfig:
    """Gopher's rules of repetition: the most that may repeat (Rae et al. 2021, arXiv 2112.11446, table A1)."""

    duplicate_lines: float = 0.30
    """Share of lines that stand there already."""
    duplicate_paragraphs: float = 0.30
    """Share of paragraphs that stand there already."""
    duplicate_line_characters: float = 0.20
    """Share of the characters that is in such lines."""
    duplicate_paragraph_characters: float = 0.20
    """Share of the characters that is in such paragraphs."""
    top_ngrams: tuple[float, ...] = (0.20, 0.18, 0.16)
    """Share of the words' characters in the most frequent n-gram, for n of 2, 3, 4."""
    duplicate_ngrams: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Share of the words' characters in n-grams that come more than once, for n of 5 to 10."""

    def __post_init__(self) -> None:
        for name in ("duplicate_lines", "duplicate_paragraphs"):
            check_share(name, getattr(self, name))
            check_share(f"{name[:-1]}_characters", getattr(self, f"{name[:-1]}_characters"))
        for name, count in (("top_ngrams", 3), ("duplicate_ngrams", 6)):
            shares = getattr(self, name)
            if len(shares) != count:
                raise ConfigError(f"{name}: expected {count} shares, got {len(shares)}")
            for share in shares:
                check_share(name, share)


@dataclass(frozen=True)
class SymbolsConfig:
    """Gopher's rules of quality (Rae et al. 2021, arXiv 2112.11446, appendix A.1.1)."""

    most_symbols: float = 0.1
    """Most hash signs, and most ellipses, for each word."""
    most_bullet_lines: float = 0.9
    """Largest share of lines that begin with a bullet."""
    most_ellipsis_lines: float = 0.3
    """Largest share of lines that end in an ellipsis."""
    least_alphabetic: float = 0.8
    """Smallest share of words with a letter in them."""
    least_mean_word: float = 3.0
    """Smallest mean length of a word, in characters; not asked of text written without spaces."""
    most_mean_word: float = 10.0
    """Largest mean length of a word, in characters; not asked of text written without spaces."""
    least_stop_words: int = 2
    """How many of `stop_words` must come (0: none, as for any language but theirs)."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """Words that prose has."""

    def __post_init__(self) -> None:
        for name in ("most_bullet_lines", "most_ellipsis_lines", "least_alphabetic"):
            check_share(name, getattr(self, name))
        for name in ("most_symbols", "least_mean_word", "least_stop_words"):
            check_least(name, getattr(self, name), 0)
        check_least("most_mean_word", self.most_mean_word, self.least_mean_word)
        if self.least_stop_words > len(set(self.stop_words)):
            raise ConfigError(
                f"least_stop_words: expected at most the {len(set(self.stop_words))} of stop_words, "
                f"got {self.least_stop_words}"
            )


@dataclass(frozen=True)
class LanguageConfig:
    """Which languages `language` keeps."""

    keep: tuple[str, ...] = ()
    """Codes of the languages to keep (en, de, zh; docs/data.md has them all)."""
    least_margin: float = 0.0
    """Least lead over the second-best language, in nats a character; below it the language is unknown (`und`)."""

    def __post_init__(self) -> None:
        check_least("least_margin", self.least_margin, 0)


@dataclass(frozen=True)
class PersonalConfig:
    """What `personal` looks for and does."""

    kinds: tuple[PersonalKind, ...] = PERSONAL
    """E-mail addresses, telephone numbers, IP addresses, payment cards, IBANs, keys and tokens of services."""
    action: Literal["mask", "drop"] = "mask"
    """Put a placeholder ([email]) in its place, or drop the document."""

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ConfigError(f"kinds: expected some of {', '.join(PERSONAL)}, got none; leave the step out")


@dataclass(frozen=True)
class MatchConfig:
    """When an item of an evaluation set counts as found in a document."""

    words: int = 13
    """n of the n-grams of words (GPT-3: 13; PaLM: 8)."""
    least_words: int = 8
    """A text of fewer than `words` words is looked for as a whole if it has this many; shorter ones are not."""
    least_share: float = 0.0
    """Smallest share of an item's n-grams that one document must hold (0: any one; PaLM: 0.7)."""
    fields: tuple[str, ...] = ()
    """Keys of JSON lines that are looked for; none: every text in them."""

    def __post_init__(self) -> None:
        if not 1 <= self.least_words <= self.words <= 64:
            raise ConfigError(
                f"words: expected at least {self.least_words} (least_words) and at most 64, got {self.words}"
            )
        check_share("least_share", self.least_share)


@dataclass(frozen=True)
class ContaminationConfig:
    """What `contamination` looks for and does."""

    evaluations: tuple[Path, ...] = ()
    """Evaluation sets: JSON lines (an item a line) or text (an item a paragraph), also ending in .gz."""
    match: MatchConfig = field(default_factory=MatchConfig)
    """When an item counts as found."""
    action: Literal["drop", "cut", "report"] = "drop"
    """Drop the document, cut the n-grams out with `window` around them (GPT-3), or only report."""
    window: int = 200
    """Characters cut on each side of an n-gram; pieces left that are shorter than this are dropped too."""
    most_pieces: int = 10
    """A document cut into more pieces is dropped whole."""
    frequent: int = 0
    """n-grams that stand in more documents than this are common phrases and don't count (0: all count)."""

    def __post_init__(self) -> None:
        check_least("window", self.window, 0)
        check_least("most_pieces", self.most_pieces, 1)
        check_least("frequent", self.frequent, 0)


@dataclass(frozen=True)
class NearDuplicatesConfig:
    """What `near_duplicates` counts as one document."""

    threshold: float = 0.8
    """Documents with at least this Jaccard similarity of their five-word sequences are near-duplicates."""
    permutations: int = 128
    """Most permutations of a MinHash signature."""
    recall: float = 0.99
    """Chance, at the threshold, that a pair is looked at at all; it decides bands and rows."""

    def __post_init__(self) -> None:
        check_share("threshold", self.threshold, 0.1)
        check_least("permutations", self.permutations, 16)
        if not 0.5 <= self.recall < 1:
            raise ConfigError(f"recall: expected at least 0.5 and below 1, got {self.recall:g}")


@dataclass(frozen=True)
class CleanConfig:
    """Steps that clean a corpus, in order, and the options of each."""

    steps: tuple[StepName, ...] = ()
    """What is done to each document, in this order; none: text is taken as it is."""
    repair: RepairConfig = field(default_factory=RepairConfig)
    """Options of `repair`."""
    boilerplate: BoilerplateConfig = field(default_factory=BoilerplateConfig)
    """Options of `boilerplate`."""
    length: LengthConfig = field(default_factory=LengthConfig)
    """Options of `length`."""
    repetition: RepetitionConfig = field(default_factory=RepetitionConfig)
    """Options of `repetition`."""
    symbols: SymbolsConfig = field(default_factory=SymbolsConfig)
    """Options of `symbols`."""
    language: LanguageConfig = field(default_factory=LanguageConfig)
    """Options of `language`."""
    personal: PersonalConfig = field(default_factory=PersonalConfig)
    """Options of `personal`."""
    contamination: ContaminationConfig = field(default_factory=ContaminationConfig)
    """Options of `contamination`."""
    near_duplicates: NearDuplicatesConfig = field(default_factory=NearDuplicatesConfig)
    """Options of `near_duplicates`."""

    def __post_init__(self) -> None:
        if "near_duplicates" in self.steps[:-1]:
            raise ConfigError("steps: expected near_duplicates once and last, as it compares what the others leave")
        if "language" in self.steps and not self.language.keep:
            raise ConfigError("language: expected languages to keep, got none; set clean.language.keep=[en]")
        if "contamination" in self.steps and not self.contamination.evaluations:
            raise ConfigError(
                "contamination: expected evaluation sets, got none; set clean.contamination.evaluations=[FILE]"
            )

    def used(self) -> dict[str, Any]:
        """The steps and the options of those that are in use, as plain values."""
        return {"steps": list(self.steps)} | {name: to_dict(getattr(self, name)) for name in sorted({*self.steps})}


@dataclass(frozen=True)
class CheckContaminationConfig:
    """Look for the items of evaluation sets in a dataset."""

    dataset: Path
    """A folder made by `data build`, or a folder or file of text."""
    evaluations: tuple[Path, ...]
    """Evaluation sets: JSON lines (an item a line) or text (an item a paragraph), also ending in .gz."""
    split: Literal["train", "val", "all"] = "train"
    """Which documents of a folder made by `data build` are read."""
    match: MatchConfig = field(default_factory=MatchConfig)
    """When an item counts as found."""
    shown: int = 10
    """Found items to tell of for each set, those with the largest share first."""

    def __post_init__(self) -> None:
        if not self.evaluations:
            raise ConfigError("evaluations: expected files, got none; name them after the dataset")
        check_least("shown", self.shown, 0)
