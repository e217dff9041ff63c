"""Sizes of files and functions: over the first limit is reported, over the second is a failure.

`python -m tests.house.sizes` prints the report.
"""

from __future__ import annotations

import ast
from pathlib import Path

from tests.house.source import ROOT, modules

FILE_LINES, FILE_LIMIT = 400, 500
FUNCTION_LINES, FUNCTION_LIMIT = 60, 100


def large_files(root: Path = ROOT, over: int = FILE_LINES) -> dict[str, int]:
    """Path -> lines of every source file with more than `over` lines."""
    lines = {
        module.path.relative_to(root).as_posix(): len(module.path.read_text(encoding="utf-8").splitlines())
        for module in modules(root).values()
    }
    return {path: n for path, n in lines.items() if n > over}


def large_functions(root: Path = ROOT, over: int = FUNCTION_LINES) -> dict[str, int]:
    """module.function -> lines of every function with more than `over` lines, from its def to its end."""
    found = {}
    for module in modules(root).values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                n = (node.end_lineno or node.lineno) - node.lineno + 1
                if n > over:
                    found[f"{module.name}.{node.name}"] = n
    return found


def report() -> str:
    lines = []
    for what, found, over in (
        ("files", large_files(), FILE_LINES),
        ("functions", large_functions(), FUNCTION_LINES),
    ):
        lines.append(f"{what} over {over} lines: {len(found) or 'none'}")
        lines += [f"  {n:4} {name}" for name, n in sorted(found.items(), key=lambda item: -item[1])]
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
