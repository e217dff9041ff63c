"""Who may import whom: only to the left, in-function imports included, and never in a circle."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house.source import ROOT, Module, modules

ORDER = (
    "errors",
    "config",
    "log",
    "device",
    "lineage",
    "batch",
    "text",
    "data",
    "nn",
    "model",
    "tune",
    "compress",
    "align",
    "optim",
    "parallel",
    "engine",
    "train",
    "prompt",
    "evals",
    "retrieve",
    "recipes",
    "memory",
    "moderate",
    "scaling",
    "registry",
    "deploy",
    "serve",
    "label",
    "lab",
    "cli",
    "__main__",
)
NEVER = {
    "nn": ("text", "data"),  # layers see tensors only
    "optim": ("model",),
    "train": ("engine", "data", "evals"),  # a recipe hands it batches and hooks
    "serve": ("train", "recipes"),
    "label": ("train", "recipes", "model"),  # people's votes need no model
}


def part(name: str) -> str:
    """The top-level part of the package a module belongs to; the package itself is ''."""
    return name.split(".")[1] if "." in name else ""


def wrong_ways(found: dict[str, Module]) -> list[str]:
    """Every import that goes to the right or into a forbidden package."""
    wrong = []
    for module in found.values():
        here = part(module.name)
        if not here:
            continue  # the package's front door names things of every layer, imported when used
        for one in module.imports:
            there = part(one.target)
            if not one.target.startswith("fledge.") or there == here:
                continue
            place = f"{module.name}:{one.line} imports {one.target}"
            if there not in ORDER or here not in ORDER:
                wrong.append(f"{place}: {there if there not in ORDER else here} has no place in the order")
            elif ORDER.index(there) > ORDER.index(here):
                wrong.append(f"{place}: {here} stands left of {there}")
            elif there in NEVER.get(here, ()):
                wrong.append(f"{place}: {here} never imports {there}")
    return wrong


def circles(found: dict[str, Module]) -> list[str]:
    """Every circle of modules (strongly connected components of more than one, by Tarjan 1972)."""
    edges = {name: [one.target for one in m.imports if one.target in found] for name, m in found.items()}
    edges["fledge"] = []
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    result = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for target in edges[name]:
            if target not in order:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], order[target])
        if low[name] == order[name]:
            circle = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(circle) > 1 or name in edges[name]:
                result.append(" -> ".join([*circle, name]))

    for name in edges:
        if name not in order:
            visit(name)
    return result


def order_of_the_page() -> tuple[str, ...]:
    """The order as docs/architecture.md tells it: the names between `<` of one run of code."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"`(errors <[^`]*)`", text)
    return tuple(re.split(r"\s*<\s*", line))


def test_the_order_is_the_one_that_the_architecture_page_tells():
    assert (*order_of_the_page(), "__main__") == ORDER


def test_imports_go_to_the_left_only():
    assert wrong_ways(modules()) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circles(modules()) == []


def plant(root: Path, files: dict[str, str]) -> dict[str, Module]:
    for name, text in {"fledge/__init__.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return modules(root)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"fledge/text/a.py": "from fledge.data import shards"}, "text stands left of data"),
        ({"fledge/text/a.py": "def f():\n    import fledge.model.folder"}, "text stands left of model"),
        ({"fledge/text/a.py": "from ..data.shards import open"}, "text stands left of data"),
        ({"fledge/nn/a.py": "from fledge.text.chat import ChatRenderer"}, "nn never imports text"),
        (
            {"fledge/train/a.py": "import importlib\nimportlib.import_module('fledge.data.x')"},
            "train never imports data",
        ),
        (
            {"fledge/serve/a.py": "if True:\n    from fledge import recipes", "fledge/recipes/__init__.py": ""},
            "serve never",
        ),
        ({"fledge/stuff/a.py": "import fledge.errors"}, "has no place in the order"),
    ],
)
def test_a_planted_import_to_the_right_is_found(tmp_path, files, message):
    (found,) = wrong_ways(plant(tmp_path, files))
    assert message in found


def test_a_planted_circle_is_found(tmp_path):
    files = {
        "fledge/nn/a.py": "def f():\n    from fledge.nn import b",
        "fledge/nn/b.py": "from fledge.nn.c import x",
        "fledge/nn/c.py": "import fledge.nn.a",
        "fledge/nn/d.py": "import fledge.nn.a",
    }
    (circle,) = circles(plant(tmp_path, files))
    assert set(circle.split(" -> ")) == {"fledge.nn.a", "fledge.nn.b", "fledge.nn.c"}
