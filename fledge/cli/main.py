"""The `fledge` command: find the verb, read its config, call its one function, turn errors into exit codes.

Everything is imported when it is needed, so that `--help` answers without torch.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from fledge.errors import EXIT_CTRL_C, EXIT_FAILED, EXIT_OK, EXIT_USAGE, FledgeError, PeerError
from fledge.log import silent, visible

EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
DEBUG = "FLEDGE_DEBUG"
REMEDIES = {
    errno.EACCES: "give yourself the right to read and write it, or choose another",
    errno.EROFS: "choose a place that can be written to",
    errno.ENOSPC: "make room on the disk, then give the same command again",
    errno.EDQUOT: "make room in your quota, then give the same command again",
    errno.EISDIR: "choose a file",
    errno.ENOTDIR: "choose a path whose parents are folders",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
EXTRAS = {
    "uvicorn": "serve",
    "starlette": "serve",
    "prometheus_client": "serve",
    "tiktoken": "fast-tok",
    "sklearn": "probe",
    "sacrebleu": "eval",
    "rouge_score": "eval",
    "ray": "ray",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command line (default: this process's) and give its exit code; nothing is raised but SystemExit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with contextlib.suppress(AttributeError, ValueError):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a latin-1 terminal is no reason to die
    return guarded(dispatch, words)


def guarded(act: Callable[[list[str]], int], words: list[str]) -> int:
    """The exit code of `act(words)`, or of the error that it ends with, which is said on standard error."""
    try:
        code = act(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return leave_broken_pipe()
    except PeerError as error:
        return error.exit_code  # the process that failed says why
    except KeyboardInterrupt:
        return fail("KeyboardInterrupt", "interrupted", EXIT_CTRL_C, words)
    except FledgeError as error:
        return fail(type(error).__name__, str(error), error.exit_code, words)
    except ModuleNotFoundError as error:
        return fail("ModuleNotFoundError", missing_module(error), EXIT_FAILED, words)
    except OSError as error:
        return fail(type(error).__name__, system_refusal(error), EXIT_FAILED, words)
    except Exception as error:  # the outermost handler: one line for people, the traceback on request
        text = f"{type(error).__name__}: {error}"
        hint = "" if debugging() else f"; set {DEBUG}=1 to see where"
        return fail(type(error).__name__, shorten(text) + hint, EXIT_FAILED, words)


def dispatch(words: list[str]) -> int:
    """The exit code of a command line. Raises what the verb raises."""
    from fledge.cli import help as help_text
    from fledge.cli.parse import HELP, find_verb, group_of, read_config, wants_help

    if not words:
        print(help_text.overview())
        return EXIT_USAGE
    if words[0] == "help" and len(words) > 1:
        words = [*words[1:], "--help"]
    if words[0] in (*HELP, "help"):
        print(help_text.overview())
        return EXIT_OK
    if words[0] in ("--version", "-V"):
        import fledge

        print(f"fledge {fledge.__version__}")
        return EXIT_OK
    if group := group_of(words):
        print(help_text.overview(group))
        return EXIT_OK
    verb, rest = find_verb(words)
    cls = named(verb.config)
    if wants_help(verb, cls, rest):
        print(help_text.verb_help(verb, cls, columns()))
        return EXIT_OK
    config, line = read_config(verb, cls, rest)
    result = call(named(verb.run), config, line.json)
    if line.json and not silent():
        print_json(result or {})
    return EXIT_OK


def named(path: str) -> Any:
    """The object at `module:name`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def call(run: Callable[..., Any], config: Any, as_json: bool) -> Any:
    """`run(config)`, or `run(config, json=…)` when the function asks for it."""
    code = getattr(run, "__code__", None)
    wants_json = code is not None and "json" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return run(config, json=as_json) if wants_json else run(config)


def print_json(value: Any) -> None:
    """One line of strict JSON on standard output."""
    from fledge.log import json_safe

    print(json.dumps(json_safe(value), allow_nan=False), flush=True)


def fail(name: str, text: str, code: int, words: list[str]) -> int:
    """Say what went wrong on standard error (and, with --json, on standard output) and give the exit code."""
    if debugging() and sys.exc_info()[0] is not None:
        traceback.print_exc()
    if another_says_it():
        return code
    line = " ".join(text.split()) or name
    try:
        print(f"error: {visible(line)}", file=sys.stderr, flush=True)
        if "--json" in words:
            print_json({"error": {"type": name, "message": line, "exit_code": code}})
    except BrokenPipeError:
        return leave_broken_pipe()
    return code


def another_says_it() -> bool:
    """Whether this is one of many processes that all fail alike, before they have met: the first of each machine says
    it. Once they have met, the first to fail says it, and only that one comes here."""
    torch = sys.modules.get("torch.distributed")
    met = torch is not None and torch.is_available() and torch.is_initialized()
    return silent() and not met and os.environ.get("LOCAL_RANK", "0") != "0"


def system_refusal(error: OSError) -> str:
    """The line for what the system refused: a file that may not be read or written, a full disk."""
    place = error.filename if error.filename is not None else "the system"
    place = os.fsdecode(place) if isinstance(place, str | bytes) else f"descriptor {place}"
    remedy = REMEDIES.get(error.errno or 0, "check it, then give the same command again")
    return shorten(f"{place}: {error.strerror or type(error).__name__}; {remedy}")


def missing_module(error: ModuleNotFoundError) -> str:
    """The line for a package that isn't installed: the extra that brings it, when there is one."""
    package = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(package)
    if extra:
        return f"expected the package {package}, found none; pip install 'fledge[{extra}]'"
    remedy = "install fledge again" if package == "fledge" else f"install it in this Python ({sys.executable})"
    return f"expected the module {error.name}, found none; {remedy}"


def leave_broken_pipe() -> int:
    """The reader went away (`fledge … | head`): say nothing, now or when Python flushes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())
    return EXIT_BROKEN_PIPE


def debugging() -> bool:
    return os.environ.get(DEBUG, "") not in ("", "0")


def shorten(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def columns() -> int:
    try:
        return min(120, os.get_terminal_size(sys.stdout.fileno()).columns)
    except (OSError, ValueError):
        return 100
