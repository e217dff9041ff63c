"""What each `tokenizer.ggml.pre` stands for: the split patterns of byte-level BPE that GGUF files know by name only.

A name stands for regular expressions that split a text one after the other, and for whether a word that is a token is
taken whole. Where a model's own tokenizer.json has a pattern that llama.cpp writes in another way, its own is listed.
Source: the models' tokenizer.json files; llama.cpp, src/llama-vocab.cpp, for which name is whose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fledge.text import pattern
from fledge.text.pattern import GPT2, LLAMA3, LOWER, O200K, QWEN2, UPPER


@dataclass(frozen=True)
class Split:
    """`regexes` split one after the other; `whole`: a word that is a token is taken as it is (`ignore_merges`)."""

    regexes: tuple[str, ...]
    whole: bool = False


DIGITS = (r"\p{N}", GPT2)  # each digit alone
# Letters with case as DeepSeek's files list them: some of later Unicode versions are not among them.
CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-"
    "\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{CASED}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"(?<!\s)\s++$",  # theirs, in linear time: space is looked for from its beginning only
    ASIAN,
    r"\p{N}+",
)
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", ASIAN, r"\p{N}")
MARK_AND_WORD = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
CHINESE_OR_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
WORDS_V3 = rf"{MARK_AND_WORD}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    CHINESE_OR_KANA,
    rf"{WORDS_V3}| ?[\p{{P}}\p{{S}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
SPARK = (*DEEPSEEK_V3[:2], rf"{WORDS_V3}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+", r"\p{N}")
ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
YOUTU = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
    f"\ufe30-\ufe4f]+|[\u3105-\u312f]+|{CHINESE_OR_KANA}",
    O200K.replace(r"\p{N}{1,3}", r"\p{N}"),
)
FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")
UNNAMED = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
SPACES_JAIS = "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s{1}"
JAIS_2 = LLAMA3.removesuffix(r"|\s+(?!\S)|\s+") + SPACES_JAIS
QWEN35 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
TEKKEN = O200K.replace(f"{ENDINGS}?", "").replace(r"\p{N}{1,3}", r"\p{N}")
BAILING = QWEN2.replace(ENDINGS, "'(?i:[sdmt]|ll|ve|re)").replace(r"\s*[\r\n]+", r"\s*[\r\n]")
SEED_CODER = QWEN2.replace(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}\r\n]+")
EXAONE_MOE = (
    rf"{ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
CHAMELEON = (
    "<sentinel:[0-9]+>",
    "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
    r"([\t\n]|    |  )",
    r"\p{N}",
    r"[\p{P}!-/:-@\[-`{-~]",
    GPT2,
)
NOT_HAN = r"&&[^\p{Han}]]"
KIMI = r"[\p{Han}]+|" + O200K.replace(UPPER, UPPER[:-1] + NOT_HAN).replace(LOWER, LOWER[:-1] + NOT_HAN).replace(
    r"[\r\n/]*", r"[\r\n]*"
)

SPLITS: dict[str, Split] = {
    **dict.fromkeys(("gpt-2", "gpt2", "phi-2", "olmo", "mpt", "jais", "roberta-bpe", "trillion"), Split((GPT2,))),
    **dict.fromkeys(("jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "jina-v1-en", "jina-v2-code"), Split((GPT2,))),
    **dict.fromkeys(("gigachat", "a.x-4.0", "mellum", "modern-bert", "exaone4", "granite-docling"), Split((GPT2,))),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral"), Split((LLAMA3,), True)),
    **dict.fromkeys(("midm-2.0", "lfm2", "jina-v5-nano", "glm4", "glm5"), Split((LLAMA3,), True)),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), Split((LLAMA3,))),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"), Split((QWEN2,))),
    **dict.fromkeys(("hunyuan", "solar-open", "grok-2"), Split((QWEN2,))),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), Split((O200K,))),
    "granite-embed-multi-97m": Split((O200K,), True),
    **dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone"), Split(DIGITS)),
    **dict.fromkeys(("minerva-7b", "mellum2"), Split(DIGITS)),
    "deepseek-llm": Split(DEEPSEEK_LLM),
    "deepseek-coder": Split(DEEPSEEK_CODER),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), Split(DEEPSEEK_V3)),
    "spark2_5": Split(SPARK),
    "youtu": Split(YOUTU, True),
    "falcon": Split(FALCON),
    "default": Split(UNNAMED),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), Split((BLOOM,))),
    "viking": Split((BLOOM, r"\p{N}")),
    "jais-2": Split((JAIS_2,)),
    "qwen35": Split((QWEN35,)),
    "tekken": Split((TEKKEN,), True),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), Split((BAILING,))),
    "seed-coder": Split((SEED_CODER,)),
    "ufakzeka": Split((QWEN2.removeprefix(ENDINGS + "|"),)),
    "laguna": Split((r"[^\n]+|[\n]+", QWEN2)),
    "exaone-moe": Split((EXAONE_MOE,)),
    "minicpm5": Split((r"\p{N}{1,3}", LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+")), True),
    "chameleon": Split(CHAMELEON),
    "kimi-k2": Split((KIMI,)),
}
LINEAR = frozenset(regex for split in SPLITS.values() for regex in split.regexes)  # so loading needn't try them out
GROUPED_DIGITS = "digits are grouped from the right, which takes quadratic time on a long number"
REFUSED = {
    **dict.fromkeys(("tiny_aya", "cohere2moe", "superbpe", "afmoe"), GROUPED_DIGITS),
    "whitespace": "its pieces are whole characters, of which unknown ones would be lost",
}
NO_CASE = frozenset(("gpt-4o", "tekken", "youtu", "kimi-k2", "granite-embed-multi-97m"))
WIDE_SPACE = frozenset(("deepseek-llm", "deepseek-coder"))
SPACES_MARKED = ("gemma4", "granite-embed-multi-311m", "sarvam-moe")  # characters, with spaces as U+2581


def other_in_llama_cpp(name: str) -> str:
    """For which texts llama.cpp splits in another way than the model whose pattern has this name; empty for none."""
    if name in NO_CASE:
        return "words with capitals inside, or with letters beyond A-Z"
    return "texts with characters from U+2000 to U+3000" if name in WIDE_SPACE else ""


def name_of(pre_tokenizer: Any, whole: bool) -> str | None:
    """The `tokenizer.ggml.pre` that stands for a tokenizer.json's `pre_tokenizer` and `ignore_merges`; None if none
    does."""
    wanted = Split(regexes_of(pre_tokenizer), whole)
    return next((name for name, split in SPLITS.items() if split == wanted), None)


def regexes_of(pre_tokenizer: Any) -> tuple[str, ...]:
    """The regular expressions that a text is split by one after the other before its bytes are spelled; none for
    another way of splitting."""
    steps = pre_tokenizer.get("pretokenizers") if isinstance(pre_tokenizer, dict) else None
    steps = steps if isinstance(steps, list) else [pre_tokenizer]
    *before, last = steps
    found = []
    for step in before:
        kind = step.get("type") if isinstance(step, dict) else None
        regex = step["pattern"].get("Regex") if kind == "Split" and isinstance(step.get("pattern"), dict) else None
        if kind == "Digits" and step.get("individual_digits") is True:
            regex = DIGITS[0]
        elif regex is None or step.get("behavior") != "Isolated" or step.get("invert"):
            return ()
        found.append(regex)
    if not isinstance(last, dict) or last.get("type") != "ByteLevel" or last.get("add_prefix_space", True):
        return ()
    return (*found, GPT2) if last.get("use_regex", True) else tuple(found)


def pre_tokenizer_of(split: Split) -> dict[str, Any]:
    """The `pre_tokenizer` entry of tokenizer.json for a split (the byte alphabet included)."""
    known = [name for name, regex in pattern.PATTERNS.items() if split.regexes == (regex,)]
    if known:
        return pattern.pre_tokenizer_of(known[0])
    steps = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in split.regexes
    ]
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*steps, plain]}
