"""No code comes in through data: no pickle, no eval, no unsafe YAML; and a family is data, never a module class."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

from tests.house.source import ROOT, Module, modules

# The one file that may read a pickle (a tool that a user must call by name to turn it into safetensors).
CONVERTER = "fledge.model.convert"
# The one file that runs code it was given: started by its sandbox, in a process that can only compute.
SANDBOX = "fledge.align.sandbox_child"
PICKLES = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
CALLS = ("torch.load", "torch.jit.load", "torch.hub.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec")
NAMES = ("UnsafeLoader", "FullLoader")
KEYWORDS = ("allow_pickle", "trust_remote_code")


def unsafe(found: dict[str, Module]) -> list[str]:
    """Every place that could run code found in a file."""
    wrong = []
    for module in found.values():
        if module.name == CONVERTER:
            continue
        wrong += [f"{module.name}:{i.line} imports {i.target}" for i in module.imports if i.target in PICKLES]
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                true = [k.arg for k in node.keywords if isinstance(k.value, ast.Constant) and k.value.value is True]
                if module.name == SANDBOX and name == "exec":
                    continue
                if name in CALLS or any(keyword in true for keyword in KEYWORDS):
                    wrong.append(f"{module.name}:{node.lineno} calls {name}")
            elif isinstance(node, ast.Attribute | ast.Name):
                name = node.attr if isinstance(node, ast.Attribute) else node.id
                if name in NAMES:
                    wrong.append(f"{module.name}:{node.lineno} uses {name}")
    return wrong


def test_nothing_reads_a_pickle_or_runs_what_it_reads():
    assert unsafe(modules()) == []


def test_the_file_that_runs_code_is_imported_by_nothing():
    assert [m.name for m in modules().values() if any(i.target.startswith(SANDBOX) for i in m.imports)] == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import torch\ntorch.load('a')",
        "import numpy as np\nnp.load('a', allow_pickle=True)",
        "import yaml\nyaml.load('a', Loader=yaml.UnsafeLoader)",
        "eval('1')",
        "x.from_pretrained('a', trust_remote_code=True)",
    ],
)
def test_a_planted_unsafe_read_is_found(tmp_path, line):
    (tmp_path / "fledge").mkdir()
    (tmp_path / "fledge" / "a.py").write_text(line)
    assert len(unsafe(modules(tmp_path))) == 1
    (tmp_path / "fledge" / "a.py").write_text("import numpy as np\nnp.load('a', allow_pickle=False)")
    assert unsafe(modules(tmp_path)) == []


def module_classes(path: Path) -> list[str]:
    """The torch module classes that a file defines."""
    from torch.nn import Module as TorchModule

    spec = importlib.util.spec_from_file_location("family_under_test", path)
    assert spec is not None and spec.loader is not None
    loaded = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(loaded)
    finally:
        del sys.modules[spec.name]
    own = (v for v in vars(loaded).values() if isinstance(v, type) and v.__module__ == "family_under_test")
    return [cls.__name__ for cls in own if issubclass(cls, TorchModule)]


FAMILIES = sorted((ROOT / "fledge" / "model" / "families").glob("[!_]*.py"))


@pytest.mark.parametrize("path", FAMILIES, ids=lambda path: path.stem)
def test_a_family_defines_no_module_class(path):
    assert module_classes(path) == []


def test_a_planted_module_class_is_found(tmp_path):
    path = tmp_path / "family.py"
    path.write_text("import torch.nn as nn\nBase = nn.Linear\nclass Odd(Base):\n    pass\n")
    assert module_classes(path) == ["Odd"]
