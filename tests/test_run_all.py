"""`make test-all` runs each group once: what passed is kept, what failed or changed runs again."""

from __future__ import annotations

import pytest

from tests import run_all
from tests.run_all import Result


@pytest.fixture
def groups(monkeypatch, tmp_path):
    """A run of two groups whose outcomes the test decides; gives the list of groups that really ran."""
    ran: list[str] = []

    def run(group: str, code: str) -> Result:
        ran.append(group)
        bad = group in failing
        result = Result(group, code, int(bad), 3, int(bad), 0, 1.0)
        run_all.place(group).with_suffix(".json").write_text(run_all.json.dumps(run_all.asdict(result)))
        return result

    failing: set[str] = set()
    monkeypatch.setattr(run_all, "RESULTS", tmp_path)
    monkeypatch.setattr(run_all, "run", run)
    monkeypatch.setattr(run_all, "slow_files", lambda: ["tests/a.py"])
    monkeypatch.setattr(run_all, "code_digest", lambda: "one")
    for name in ("ONLY", "FRESH", "RESUME"):
        monkeypatch.delenv(name, raising=False)
    return ran, failing


def test_what_passed_is_not_run_again_and_what_failed_is(groups, capsys):
    ran, failing = groups
    failing.add("tests/a.py")
    assert run_all.main() == 1
    assert "FAILED" in capsys.readouterr().out
    failing.clear()
    assert run_all.main() == 0
    assert ran == ["fast", "tests/a.py", "tests/a.py"]
    assert capsys.readouterr().out.splitlines()[-1] == "6 passed, 0 failed, 0 skipped"


def test_changed_code_runs_again_unless_asked_to_resume(groups, monkeypatch, capsys):
    ran, _ = groups
    run_all.main()
    monkeypatch.setattr(run_all, "code_digest", lambda: "two")
    monkeypatch.setenv("RESUME", "1")
    assert run_all.main() == 0 and len(ran) == 2
    assert "with the code of one" in capsys.readouterr().out
    monkeypatch.delenv("RESUME")
    run_all.main()
    assert len(ran) == 4
    monkeypatch.setenv("FRESH", "1")
    run_all.main()
    assert len(ran) == 6
