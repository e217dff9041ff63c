"""`make test-all`: the fast tests as one group, then every file that has slow tests as a group of its own.

Each group runs once for a state of the code: what passed is kept in .test-all/ and not run again, so an interrupted
run goes on where it stopped. FRESH=1 runs everything anew; RESUME=1 also accepts what passed with other code (the
table says so); ONLY=word runs the groups whose name holds that word.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".test-all"
FAST = "fast"
LAST_LINE = re.compile(r"^(\d+) passed, (\d+) failed, (\d+) skipped")


@dataclass(frozen=True)
class Result:
    """How one group ended. `code` is the digest of the sources it ran with."""

    group: str
    code: str
    exit: int
    passed: int
    failed: int
    skipped: int
    seconds: float

    @property
    def good(self) -> bool:
        return self.exit == 0 and self.failed == 0


def main() -> int:
    """Run what has not passed yet, print the table, and give 0 when every group is good."""
    RESULTS.mkdir(exist_ok=True)
    code = code_digest()
    only, fresh, resume = (os.environ.get(name, "") for name in ("ONLY", "FRESH", "RESUME"))
    results = []
    for group in [FAST, *slow_files()]:
        if only not in group:
            continue
        kept = None if fresh else stored(group)
        if kept is not None and kept.good and (kept.code == code or resume):
            results.append(kept)
            continue
        results.append(run(group, code))
    print(table(results, code))
    return 0 if results and all(result.good for result in results) else 1


def code_digest() -> str:
    """Twelve hex digits over every source file of the checkout, committed or not."""
    digest = hashlib.sha256()
    files = (p for folder in ("fledge", "tests", "runs") for p in (ROOT / folder).rglob("*") if p.is_file())
    for path in sorted(p for p in files if "__pycache__" not in p.parts):
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def slow_files() -> list[str]:
    """The test files that hold slow tests, in order."""
    line = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "slow"]
    got = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    if got.returncode not in (0, 5):  # 5: nothing collected
        raise SystemExit(got.stdout + got.stderr)
    return sorted({text.split("::")[0] for text in got.stdout.splitlines() if "::" in text})


def place(group: str) -> Path:
    return RESULTS / group.replace("/", "-")


def stored(group: str) -> Result | None:
    try:
        return Result(**json.loads(place(group).with_suffix(".json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def run(group: str, code: str) -> Result:
    """Run one group, show its output as it comes, keep its log and result."""
    chosen = ["-n", "2", "--dist", "loadfile", "-m", "not slow"] if group == FAST else ["-m", "slow", group]
    print(f"== {group}", flush=True)
    began, last = time.monotonic(), ""
    line = [sys.executable, "-m", "pytest", "-q", *chosen]
    with (
        open(place(group).with_suffix(".log"), "w", encoding="utf-8") as log,
        subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child,
    ):
        assert child.stdout is not None
        for text in child.stdout:
            log.write(text)
            print(text, end="", flush=True)
            last = text if LAST_LINE.match(text) else last
    counted = LAST_LINE.match(last)
    passed, failed, skipped = (int(n) for n in counted.groups()) if counted else (0, 0, 0)
    result = Result(group, code, child.returncode, passed, failed, skipped, round(time.monotonic() - began, 1))
    place(group).with_suffix(".json").write_text(json.dumps(asdict(result)) + "\n", encoding="utf-8")
    return result


def table(results: list[Result], code: str) -> str:
    longest = max((len(result.group) for result in results), default=5)
    lines = ["", f"{'group':<{longest}}  {'':6} {'passed':>6} {'failed':>6} {'skipped':>7} {'seconds':>8}"]
    for r in results:
        word = "good" if r.good else "FAILED"
        note = "" if r.code == code else f"  (with the code of {r.code})"
        lines.append(f"{r.group:<{longest}}  {word:6} {r.passed:6} {r.failed:6} {r.skipped:7} {r.seconds:8.1f}{note}")
    passed, failed, skipped = (sum(getattr(r, name) for r in results) for name in ("passed", "failed", "skipped"))
    return "\n".join([*lines, f"{passed} passed, {failed} failed, {skipped} skipped"])


if __name__ == "__main__":
    sys.exit(main())
