"""`fledge quickstart`: raw text to a chat page. The ordinary verbs with the ordinary YAML files of runs/quickstart, in
order; nothing is computed here. Each verb reuses what is already there, so a stopped quickstart goes on where it was.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fledge
from fledge import config as configs
from fledge.cli.main import call, named
from fledge.cli.parse import find_verb
from fledge.errors import CheckpointError, ConfigError, DataError
from fledge.lineage import read_card
from fledge.log import clock, say
from fledge.text.documents import refuse_inside

OUT = "out/quickstart"  # the folder that the YAML files name; --out puts another in its place
STEPS = (
    ("data build", "1-corpus.yaml"),
    ("tokenizer train", "2-tokenizer.yaml"),
    ("data build", "3-shards.yaml"),
    ("pretrain", "4-pretrain.yaml"),
    ("data qa", "5-questions.yaml"),
    ("sft", "6-sft.yaml"),
    ("evaluate", "7-text.yaml"),
    ("evaluate", "8-answers.yaml"),
    ("report", "9-report.yaml"),
)
SERVE = ("serve", "10-serve.yaml")
SERVER_PACKAGES = ("starlette", "uvicorn", "prometheus_client")


@dataclass(frozen=True)
class QuickstartConfig:
    """What to raise a model on, where to, and whether to serve it."""

    text: Path | None = None
    """A folder of text to train on; unset: the documentation and library that this Python installation carries."""
    out: Path = Path(OUT)
    """Folder for everything that is made."""
    serve: bool = True
    """Serve the model when it is ready; --no-serve ends after the report."""
    port: int | None = None
    """Port of the chat page; unset: the one in 10-serve.yaml."""
    runs: Path | None = None
    """Folder with your own versions of the YAML files; unset: those that come with fledge."""


def quickstart(config: QuickstartConfig, json: bool = False) -> dict[str, Any]:
    """Run every step and, unless told not to, become the server. Gives each step's result and seconds.

    Mistakes in any step's file are found before the first step. Raises what the verbs raise; the same command goes on
    from there.
    """
    folder = config.runs or runs_folder()
    results: dict[str, Any] = {}
    began, cpu_began, withheld_began = time.monotonic(), cpu_seconds(), withheld_seconds()
    step_configs = prepare(config, folder)
    for number, (verb, file) in enumerate(STEPS, 1):
        say(f"\n[{number}/{len(STEPS)}] fledge {verb} {folder / file}")
        step_began, step_cpu = time.monotonic(), cpu_seconds()
        result = call(named(find_verb(verb.split())[0].run), step_configs[file], json)
        spent, cpu = time.monotonic() - step_began, cpu_seconds() - step_cpu
        say(f"[{number}/{len(STEPS)}] done in {clock(spent)} ({cpu:.0f} s of CPU)")
        results[Path(file).stem.partition("-")[2]] = {**(result or {}), "step_seconds": round(spent, 2)}
    seconds, cpu = round(time.monotonic() - began, 1), round(cpu_seconds() - cpu_began, 1)
    peak = results["pretrain"].get("matmul_peak_flops")
    withheld = round(withheld_seconds() - withheld_began, 1)
    model = step_configs[SERVE[1]].model
    say("\n" + closing_words(model, results["report"].get("out"), (seconds, cpu, withheld), peak))
    if config.serve:
        become_server(config, folder / SERVE[1], model, json)
    times = {"seconds": seconds, "cpu_seconds": cpu, "withheld_cpu_seconds": withheld}
    return {"steps": results, **times, "matmul_peak_flops": peak}


def prepare(config: QuickstartConfig, folder: Path) -> dict[str, Any]:
    """The config of every step and of the server, by file. Raises what would otherwise show after minutes of computing:
    ConfigError for a mistake in a file or in the folders, DataError for another text, ModuleNotFoundError."""
    found = {file: step_config(config, verb, folder / file) for verb, file in (*STEPS, SERVE)}
    trees = [configs.read_yaml(folder / file) for file in found]
    if config.out != Path(OUT) and all(placed(tree, str(config.out)) == tree for tree in trees):
        raise ConfigError(
            f"out: expected files that name {OUT}, which {config.out} would replace, found none in {folder}; "
            "leave --out out, or name it there"
        )
    if config.text is not None:
        refuse_inside(config.text, config.out)
    for package in SERVER_PACKAGES if config.serve else ():
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    refuse_other_text(config, found["1-corpus.yaml"], found["4-pretrain.yaml"])
    return found


def refuse_other_text(config: QuickstartConfig, corpus: Any, pretrain: Any) -> None:
    """Raises DataError if a model was trained here on another text, whose corpus the first step would replace."""
    from fledge.data.corpus import source_digest, survey

    if pretrain.train.allow_changes or not (Path(pretrain.run.dir) / "run.yaml").is_file():
        return
    try:
        trained_on = read_card(corpus.out)["facts"]["corpus_inputs"]["sources"]
    except (CheckpointError, KeyError, TypeError):
        return  # a corpus that was lost or damaged is built again; training compares what it gets
    if trained_on != source_digest(survey(corpus)[0]):
        raise DataError(f"{config.out}: holds a quickstart of another text; use another --out, or remove it")


def runs_folder() -> Path:
    """The YAML files: inside an installed package, or in runs/ of a checkout."""
    package = Path(fledge.__file__).parent
    for folder in (package / "runs" / "quickstart", package.parent / "runs" / "quickstart"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"quickstart: expected YAML files in {package / 'runs'}, found none; install fledge again")


def step_config(config: QuickstartConfig, verb: str, file: Path) -> Any:
    """The config of one step: its YAML file with the chosen folders in it."""
    tree = placed(configs.read_yaml(file), str(config.out))
    if verb == "data build" and config.text is not None:
        tree["source"] = str(config.text.absolute())  # a folder named `python` is meant, not the installation
    if verb == SERVE[0] and config.port is not None:
        tree["port"] = config.port
    return configs.from_dict(named(find_verb(verb.split())[0].config), tree, at=str(file))


def placed(value: Any, out: str) -> Any:
    """`value` with the folder `out` wherever a text begins with the one that the YAML files name."""
    if isinstance(value, dict):
        return {key: placed(item, out) for key, item in value.items()}
    if isinstance(value, list):
        return [placed(item, out) for item in value]
    if isinstance(value, str) and (value == OUT or value.startswith(f"{OUT}/")):
        return out + value[len(OUT) :]
    return value


def cpu_seconds() -> float:
    """CPU seconds of this process, all its threads, and its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def withheld_seconds() -> float:
    """CPU seconds since boot that a virtual machine asked for and its host gave to others ("steal" in proc(5)); 0 where
    the system doesn't say."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
        return int(fields[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


def closing_words(model: str, page: str | None, spent: tuple[float, float, float], peak: float | None) -> str:
    """The last lines. `spent`: seconds of wall time, of CPU, and of CPU that the machine's host withheld."""
    seconds, cpu, withheld = spent
    lines = [f"computing time: {clock(seconds)} ({seconds:.0f} s wall, {cpu:.0f} s CPU"]
    lines[0] += f", {withheld:.0f} s of CPU withheld by the machine's host)" if withheld >= 1 else ")"
    if peak:
        lines[0] += f" on a machine with a measured matmul peak of {peak / 1e9:.0f} GFLOP/s"
    lines += [f"report: {page}"] if page else []
    lines.append(f"talk to it: fledge chat {model}    serve it: fledge serve {model}")
    return "\n".join(lines)


def become_server(config: QuickstartConfig, file: Path, model: str, json: bool) -> None:
    """Replace this process by `fledge serve`, so that the server's process never has torch in it."""
    words = [sys.executable, "-m", "fledge", "serve", str(file), f"model={model}"]
    words += [f"port={config.port}"] if config.port is not None else []
    words += ["--json"] if json else []
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, words)
