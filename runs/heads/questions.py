"""Questions whose answers stand in a paragraph: the sample of SQuAD 1.1 and the English XQuAD as rows of one form, a
fifth of the articles held out.

python runs/heads/questions.py DATA OUT writes OUT/train.jsonl and OUT/val.jsonl. The sample says what is answered and
not where: the first place where the text stands counts. A question that is in both is taken once, from XQuAD.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

HELD_OUT_EVERY = 5


def of_xquad(path: Path) -> list[dict[str, Any]]:
    """Rows of SQuAD's nesting, each with its article's title."""
    found = []
    for article in json.loads(gzip.decompress(path.read_bytes()))["data"]:
        for paragraph in article["paragraphs"]:
            for one in paragraph["qas"]:
                texts, places = zip(*((a["text"], a["answer_start"]) for a in one["answers"]), strict=True)
                found.append(row(one["id"], article["title"], one["question"], paragraph["context"], texts, places))
    return found


def of_sample(path: Path) -> list[dict[str, Any]]:
    """Rows of the sample, whose query holds title, paragraph and question."""
    found = []
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        one = json.loads(line)
        _, _, rest = one["query"].partition("\nBackground: ")
        context, _, rest = rest.rpartition("\nQuestion: ")
        texts = list(dict.fromkeys(one["answers_text"]))
        places = [context.index(text) for text in texts]
        found.append(row(one["id"], one["title"], rest.removesuffix("\nAnswer:"), context, texts, places))
    return found


def row(name: str, title: str, question: str, context: str, texts: Any, places: Any) -> dict[str, Any]:
    answers = {"text": list(texts), "answer_start": list(places)}
    return {"id": name, "title": title, "question": question, "context": context, "answers": answers}


def main(data: Path, out: Path) -> None:
    rows = of_xquad(data / "bench_xquad" / "xquad.en.json.gz")
    known = {one["id"] for one in rows}
    rows += [
        r for r in of_sample(data / "bench_squad_v11_sample" / "squad_v11_sample.jsonl.gz") if r["id"] not in known
    ]
    held_out = set(sorted({one["title"] for one in rows})[::HELD_OUT_EVERY])
    out.mkdir(parents=True, exist_ok=True)
    for name, wanted in (("train", False), ("val", True)):
        lines = [json.dumps(one, ensure_ascii=False) for one in rows if (one["title"] in held_out) == wanted]
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(lines)} questions")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
