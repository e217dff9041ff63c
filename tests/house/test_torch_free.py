"""What never loads torch, whatever it calls; and how fast `import fledge` is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fledge.cli.verbs import VERBS
from tests.house.source import Module, modules

# Modules that may reach torch neither at import nor inside a function.
FREE = ("fledge.errors", "fledge.config", "fledge.log", "fledge.lineage", "fledge.text", "fledge.data", "fledge.serve",
        "fledge.label")  # fmt: skip
FREE_FILES = (
    "fledge.engine.request",
    "fledge.engine.client",
    "fledge.evals.agreement",
    "fledge.evals.share",
    "fledge.train.report",
    "fledge.train.page",
    "fledge.train.plot",
    "fledge.train.compare",
    "fledge.train.event_file",
    "fledge.cli.parse",
    "fledge.cli.help",
    "fledge.cli.schema",
    "fledge.cli.verbs",
    "fledge.cli.page",
)
TORCH_FILES = (
    "batches", "keyed_batches", "masked_batches", "denoise_batches", "infill_batches", "mixed_batches",
    "preference_batches", "task_batches", "text_pair_batches",
)  # fmt: skip
EXCEPT = tuple(f"fledge.data.{name}" for name in TORCH_FILES)


def free(name: str) -> bool:
    inside = any(name == top or name.startswith(f"{top}.") for top in FREE)
    return (inside or name in FREE_FILES) and name not in EXCEPT


def ways_to_torch(found: dict[str, Module]) -> dict[str, str]:
    """Module -> the import by which it reaches torch, through any number of modules and inside any function."""
    reach: dict[str, str] = {}
    grown = True
    while grown:
        grown = False
        for module in found.values():
            if module.name in reach or module.name == "fledge":
                continue
            for one in module.imports:
                torch = one.target == "torch" or one.target.startswith("torch.")
                if not one.typing_only and (torch or one.target in reach):
                    reach[module.name] = f"{module.name}:{one.line} imports {one.target}"
                    grown = True
                    break
    return reach


def test_torch_free_modules_cannot_reach_torch():
    found = modules()
    assert [why for name, why in ways_to_torch(found).items() if free(name)] == []


def test_a_planted_way_to_torch_is_found(tmp_path):
    files = {
        "fledge/__init__.py": "",
        "fledge/device.py": "import torch",
        "fledge/text/a.py": "def f():\n    from fledge.device import pick",
        "fledge/text/b.py": "import fledge.errors",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    reach = ways_to_torch(modules(tmp_path))
    assert set(reach) == {"fledge.device", "fledge.text.a"}
    assert free("fledge.text.a")


def loaded_by(names: list[str]) -> str:
    """The first of `names` whose import loads torch, in a fresh process; '' if none does."""
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules:\n"
        "        print(name)\n"
        "        break\n"
    )
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert got.returncode == 0, got.stderr
    return got.stdout.strip()


def test_importing_the_ground_floor_and_every_config_loads_no_torch():
    configs = [verb.config.partition(":")[0] for verb in VERBS]
    ground = [name for name in modules() if free(name) and not name.endswith("__main__")]
    assert loaded_by(["fledge", *configs, *ground]) == ""


def test_the_probe_for_torch_can_fail():
    assert loaded_by(["fledge.errors", "fledge.device"]) == "fledge.device"


HELP = (
    "import os, sys\nsys.stdout = open(os.devnull, 'w')\n"
    "from fledge.cli.main import main\nraise SystemExit(main({words!r}))"
)


def seconds_of(code: str) -> float:
    """CPU seconds of a fresh process running `code`, the least of three: what an idle machine's clock would show,
    whatever else runs on this one."""
    best = 99.0
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        best = min(best, spent)
    return best


def test_a_slow_start_is_found():
    assert seconds_of("import time\nwhile time.process_time() < 0.4: pass") >= 0.3


def test_import_fledge_takes_under_300_ms():
    assert seconds_of("import fledge") < 0.3


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_the_help_of_every_verb_answers_within_half_a_second(verb):
    words = [*verb.name.split(), "--help"]
    assert seconds_of(HELP.format(words=words)) < 0.5


def test_a_broken_help_is_found():
    with pytest.raises(subprocess.CalledProcessError):
        seconds_of(HELP.format(words=["pretrian", "--help"]))
