"""languages.txt, made anew: `python -m fledge.data.cleaning.profiles udhr2.jsonl.gz > languages.txt`.

The input holds a translation of the Universal Declaration of Human Rights a line, `{"lang", "text"}`, as NLTK's corpus
udhr2 has them (public domain).
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from pathlib import Path

from fledge.data.cleaning.language import LETTERS
from fledge.data.scripts import letters_by_script

MOST_GRAMS = 800  # that a language's profile keeps
TRANSLATIONS = (  # name in the corpus (ISO 639-3) and the code we give
    "afr:af als:sq amh:am arb:ar azj_latn:az bel:be bul:bg cat:ca ces:cs ckb:ckb cym:cy dan:da deu:de eng:en epo:eo "
    "est:et eus:eu fin:fi fra:fr gle:ga glg:gl hau_NG:ha heb:he hin:hi hrv:hr hun:hu ibo:ig ind:id isl:is ita:it "
    "jav:jv kaz:kk khk:mn kir:ky lat:la lav:lv lit:lt ltz:lb mar:mr mkd:mk mlt:mt nep:ne nld:nl nob:no pes_1:fa pol:pl "
    "por_BR:pt por_PT:pt ron_1993:ro rus:ru san:sa slk:sk slv:sl som:so spa:es srp_cyrl:sr sun:su swe:sv swh:sw "
    "tat:tt tgk:tg tgl:tl tir:ti tur:tr uig_arab:ug ukr:uk urd:ur uzn_latn:uz vie:vi xho:xh ydd:yi yor:yo zul:zu"
)


def gram_counts(text: str) -> Counter[str]:
    """How often each letter, pair and triple comes in the words, with a space before and after each."""
    counts: Counter[str] = Counter()
    for word, times in Counter(LETTERS.findall(text.lower())).items():
        padded = f" {word} "
        for n in (1, 2, 3):
            for start in range(len(padded) - n + 1):
                counts[padded[start : start + n]] += times
    del counts[" "]
    return counts


def profile_line(code: str, text: str) -> str:
    """One line of languages.txt: the most frequent, grouped by their count."""
    counts = gram_counts(text)
    groups: dict[int, list[str]] = {}
    for gram, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_GRAMS]:
        groups.setdefault(count, []).append(gram.replace(" ", "_"))
    script = next(iter(letters_by_script(text)))
    rows = [" ".join([str(count), *grams]) for count, grams in groups.items()]
    return "\t".join([f"{script} {code} {counts.total()}", *rows])


def page(path: str | Path) -> str:
    """The whole of languages.txt from the corpus at `path`."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    texts = {row["lang"]: row["text"] for row in rows}
    by_code: dict[str, str] = {}
    for pair in TRANSLATIONS.split():
        name, code = pair.split(":")
        by_code[code] = f"{by_code.get(code, '')} {texts[name]}"
    return "".join(f"{profile_line(code, text)}\n" for code, text in sorted(by_code.items()))


if __name__ == "__main__":
    print(page(sys.argv[1]), end="")
