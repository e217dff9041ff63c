"""The verb `data contamination`: which items of evaluation sets stand in a dataset."""

from __future__ import annotations

import time
from typing import Any

from fledge.data.cleaning.config import CheckContaminationConfig
from fledge.data.cleaning.contamination import EvaluationSets
from fledge.data.cleaning.lines import evaluation_lines
from fledge.log import Progress
from fledge.text.documents import read_documents, total_bytes


def check_contamination(config: CheckContaminationConfig, json: bool = False) -> dict[str, Any]:
    """For each set the items found and their closest documents; documents that hold items, and bytes read.

    Raises DataError if a set or the dataset can't be read. Prints a summary unless `json`.
    """
    began = time.monotonic()
    sets = EvaluationSets(config.evaluations, config.match)
    progress = Progress("read", total_bytes(config.dataset))
    n_documents, n_bytes, n_holding = 0, 0, 0
    for document in read_documents(config.dataset, config.split):
        found = sets.find(document.text)
        sets.see(document.path, found)
        n_holding += len(sets.contaminating(found)) > 0
        n_documents, n_bytes = n_documents + 1, n_bytes + document.n_bytes
        progress.update(n_bytes)
    progress.close()
    result = {
        "dataset": str(config.dataset),
        "documents": n_documents,
        "bytes": n_bytes,
        "holding": n_holding,
        "evaluations": sets.report(config.shown),
        "seconds": round(time.monotonic() - began, 2),
    }
    if not json:
        print("\n".join(evaluation_lines(result, config.shown)))
        print(f"{n_holding:,} of {n_documents:,} documents ({n_bytes:,} bytes) hold items")
    return result
