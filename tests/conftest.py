"""What every test shares: the data folder, one thread a process, and the count that ends a run."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: workers would fight for the cores
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
MISSING = "missing data: "

settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # `make test &` in a script: programs under test would ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def data_root() -> Path:
    """FLEDGE_DATA, or ../shared/data beside the checkout."""
    return Path(os.environ.get("FLEDGE_DATA") or ROOT.parent / "shared" / "data").resolve()


def missing(what: str) -> None:
    """Skip for want of data; in `make test-all`, where everything must run, fail."""
    if os.environ.get("FLEDGE_TEST_ALL"):
        pytest.fail(MISSING + what, pytrace=False)
    pytest.skip(MISSING + what)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets (FLEDGE_DATA)."""
    root = data_root()
    if not root.is_dir():
        missing(f"no folder {root}; set FLEDGE_DATA")
    return root


@pytest.fixture(scope="session")
def data_file(data_folder: Path) -> Callable[[str], Path]:
    """A function from a name inside the data folder to its path; a set that isn't there is counted as missing."""

    def find(name: str) -> Path:
        if not (data_folder / name).exists():
            missing(name)
        return data_folder / name

    return find


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """The last line of a run: what passed, failed and was skipped, and what was missing."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput") or config.option.collectonly:
        return
    counts = {name: len(reporter.stats.get(name, [])) for name in ("passed", "failed", "error", "skipped")}
    if not any(counts.values()):
        return
    reporter.write_line(summary(counts, [reason(report) for report in reporter.stats.get("skipped", [])]))


def reason(report: pytest.TestReport) -> str:
    return str(report.longrepr[2]).removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""


def summary(counts: dict[str, int], reasons: list[str]) -> str:
    absent = Counter(text.removeprefix(MISSING) for text in reasons if text.startswith(MISSING))
    others = Counter(text or "no reason given" for text in reasons if not text.startswith(MISSING))
    failed = counts["failed"] + counts["error"]
    line = f"{counts['passed']} passed, {failed} failed, {counts['skipped']} skipped"
    if absent:
        named = ", ".join(f"{name} ({n})" if n > 1 else name for name, n in sorted(absent.items()))
        line += f"; missing data in {sum(absent.values())}: {named}"
    return line + "".join(f"; {text} in {n}" for text, n in sorted(others.items()))
