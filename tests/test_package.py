"""The package's front door: every name is there, and stays the same whatever is imported afterwards."""

from __future__ import annotations

import subprocess
import sys

import fledge
from fledge import _WHERE
from tests.house.source import modules

CODE = """
import importlib, fledge
found = {name: getattr(fledge, name) for name in fledge._WHERE}
for module in MODULES:
    importlib.import_module(module)
changed = [name for name, value in found.items() if getattr(fledge, name) is not value]
raise SystemExit(f"changed: {changed}" if changed else 0)
"""


def test_every_name_stays_what_it_is_when_subpackages_are_imported():
    """A name like that of a subpackage would become the subpackage once anything of it is imported."""
    parts = [name for name in modules() if name.count(".") == 1 and not name.endswith("__main__")]
    code = CODE.replace("MODULES", repr(parts))
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (got.returncode, got.stderr) == (0, "")
    assert set(_WHERE).isdisjoint(name.partition(".")[2] for name in parts)


def test_the_list_of_names_is_complete():
    assert sorted(fledge.__all__) == sorted([*_WHERE, "__version__"]) == dir(fledge)
