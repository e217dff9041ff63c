"""`fledge scale predict` and `check`: say a run's loss before it runs, and hold the run to it.

A register is a file of JSON lines, each with its time, its own digest and the digest of the line before: a prediction
that was changed, taken out or put in between is found. What the clock of the machine says is believed.
"""

from __future__ import annotations

import fcntl
import json as json_text
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from fledge import config as configs
from fledge.data.shards import open_shards
from fledge.errors import ConfigError, DataError
from fledge.lineage import check_output_file, make_folder, read_card, sha256_json
from fledge.log import warn
from fledge.model.folder import read_config
from fledge.recipes.config import PretrainConfig
from fledge.recipes.objective import objective_tokenizer
from fledge.recipes.pretrain import first_config
from fledge.scaling.config import CheckConfig, PredictConfig
from fledge.scaling.fit import LEVELS, surface_of
from fledge.scaling.fitted import read_fit
from fledge.scaling.laws import FLOPS_PER_PARAMETER_TOKEN
from fledge.scaling.sweep import sizes, step_tokens
from fledge.train.record import number, read_run

REGISTER = "predictions.jsonl"
FORMAT = 1
SAME = 0.01  # share by which a run's N and D may differ from what was predicted for
DRAWS = 4000
FAR = 100.0  # times the sweep's largest C from which on a warning is due
NUMBERS = ("time", "parameters", "tokens", "loss", "low", "high")
FIRST = ""


def predict(config: PredictConfig, json: bool = False) -> dict[str, Any]:
    """The loss to expect with its 95 % interval, appended to the register.

    Raises DataError for a fit without a law L(N, D) or bootstrap samples, ConfigError for a run that has begun already.
    """
    found = read_fit(config.fit)
    parameters, tokens, folder, data = asked_for(config, found)
    expected = interval(found, parameters, tokens, config.seed, str(config.fit))
    times = FLOPS_PER_PARAMETER_TOKEN * parameters * tokens / found["largest"]["flops"]
    if times > FAR:
        warn(f"this is {times:,.0f} times the largest C of the sweep: the interval knows nothing of what changes there")
    result = {
        "run": folder, "parameters": parameters, "tokens": tokens, "count": found["count"], **expected,
        "extrapolation": times, "data": data, "fit": found["digest"], "points": found["points_digest"],
    }  # fmt: skip
    if config.register:
        path = config.out or config.fit.with_name(REGISTER)
        if folder and begun(Path(folder)) is not None:
            raise ConfigError(f"{folder}: expected a run that hasn't begun, got one that has; a prediction comes first")
        result = append(path, result) | {"register": str(path)}
    if not json:
        print(f"loss {result['loss']:.4f} ({result['low']:.4f} .. {result['high']:.4f}) for {parameters:.4g} parameters"
              f", {tokens:.4g} tokens, {times:.3g} x the sweep's largest C")  # fmt: skip
        print(f"registered in {result['register']}, {result['digest'][:12]}" if config.register else "not registered")
    return result


def asked_for(config: PredictConfig, found: dict[str, Any]) -> tuple[float, float, str, str]:
    """(N, D, the run's folder or '', digest of the data)."""
    if not config.run:
        return config.parameters, config.tokens, "", found["data"]
    run = configs.load(PretrainConfig, config.run)
    if not (Path(run.data.path) / "train.bin").is_file():
        raise ConfigError(
            f"{config.run}: expected data.path to be a dataset folder (the sweep's), got {run.data.path!r}"
        )
    dataset = open_shards(run.data.path)
    data = dataset.digest
    if found["data"] and data != found["data"]:
        raise DataError(
            f"{config.run}: expected the sweep's data {found['data'][:12]}…, got {data[:12]}…; "
            "losses on other data don't compare"
        )
    model = first_config(run, objective_tokenizer(run, dataset.tokenizer))
    parameters = sizes(model)[found["count"] == "non_embedding"]
    return float(parameters), float(run.train.steps * step_tokens(run, model)), run.run.dir, data


def interval(found: dict[str, Any], parameters: float, tokens: float, seed: int, at: str) -> dict[str, float]:
    """`loss`, `low` and `high`: the law's loss, and 95 % of bootstrap laws times residuals of single runs."""
    part = found["approach_3"]
    if "missing" in part:
        raise DataError(f"{at}: expected a law L(N, D), got none: {part['missing']}")
    if "samples" not in part:
        reason = part.get("no_intervals", "fit again with bootstrap=500")
        raise DataError(f"{at}: expected bootstrap samples, got none; {reason}")
    A, alpha, B, beta, E = np.array(part["samples"]).T
    losses = E + A / parameters**alpha + B / tokens**beta
    residuals = np.array(part["residuals"])
    spread = math.sqrt(len(residuals) / max(1, len(residuals) - 5))  # the law has taken five numbers from them
    random = np.random.default_rng(seed)
    drawn = random.choice(losses, DRAWS) * np.exp(-spread * random.choice(residuals, DRAWS))
    low, high = np.percentile(drawn, LEVELS)
    loss = surface_of(part).loss(parameters, tokens)
    return {"loss": loss, "low": float(min(low, loss)), "high": float(max(high, loss))}


def append(path: Path, prediction: dict[str, Any]) -> dict[str, Any]:
    """The prediction as it stands in the register: with format, time, the digest before and its own. The register is
    read and found whole first. Raises DataError."""
    check_output_file(path)
    make_folder(path.parent)
    with open(path, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        earlier = read_register(path)
        line = {"format": FORMAT, "time": round(time.time(), 3), **prediction}
        line["previous"] = earlier[-1]["digest"] if earlier else FIRST
        line["digest"] = sha256_json(line)
        torn = path.read_bytes()[-1:] not in (b"", b"\n")  # an editor may have taken the last line break
        file.write(("\n" if torn else "") + json_text.dumps(line, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return line


def read_register(path: Path) -> list[dict[str, Any]]:
    """Every prediction, oldest first. Raises DataError for a line that isn't what was appended."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a register of predictions, can't read it ({type(error).__name__})") from None
    found: list[dict[str, Any]] = []
    before = FIRST
    for n, text in enumerate(lines, 1):
        try:
            line = json_text.loads(text)
            digest = line["digest"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DataError(f"{path}, line {n}: expected a prediction, got {text[:40]!r}; restore the file") from None
        unchanged = digest == sha256_json({k: v for k, v in line.items() if k != "digest"})
        if not unchanged or line.get("previous") != before or line.get("format") != FORMAT:
            raise DataError(
                f"{path}, line {n}: expected the line that was registered, got another; a register is only appended to"
            )
        if not all(isinstance(line.get(name), int | float) and math.isfinite(line[name]) for name in NUMBERS):
            raise DataError(f"{path}, line {n}: expected finite numbers, got others; restore the file")
        found.append(line)
        before = digest
    return found


def begun(folder: Path) -> float | None:
    """Unix time of the first event of a run, or None if it hasn't begun."""
    if not (folder / "log.jsonl").is_file():
        return None
    times = [number(event.get("time")) for event in read_run(folder).events]
    return min((value for value in times if value is not None), default=0.0)


def check(config: CheckConfig, json: bool = False) -> dict[str, Any]:
    """Whether a finished run's loss lies in the interval that was registered before it began.

    Raises DataError for a run that isn't finished, for one without a prediction of its N and D, and for a prediction
    that came when the run had begun or ended, or was of other data.
    """
    run = read_run(config.run)
    loss = number(run.end.get("val_loss"))
    if not run.end or loss is None or not math.isfinite(loss):
        raise DataError(f"{config.run}: expected a finished run with a finite loss, got none; let it end first")
    total, inner = sizes(read_config(config.run / "model")[1])
    tokens = number(run.end.get("tokens")) or 0.0
    data = str(read_card(config.run / "model")["facts"].get("data_digest", ""))
    measured = {"total": float(total), "non_embedding": float(inner)}
    prediction = matching(read_register(config.predictions), config, measured, tokens, data)
    in_time(prediction, config, begun(config.run) or 0.0, number(run.end.get("time")) or 0.0)
    expected, low, high = prediction["loss"], prediction["low"], prediction["high"]
    result = {
        "run": str(config.run), "loss": loss, "predicted": expected, "low": low, "high": high,
        "inside": low <= loss <= high, "error": loss / expected - 1, "registered": prediction["time"],
        "digest": prediction["digest"], "model": read_card(config.run / "model")["digest"],
    }  # fmt: skip
    if not json:
        verdict = "inside" if result["inside"] else "OUTSIDE"
        print(f"loss {loss:.4f}, predicted {expected:.4f} ({low:.4f} .. {high:.4f}): {verdict},"
              f" {100 * result['error']:+.2f} %")  # fmt: skip
    return result


def matching(
    register: list[dict[str, Any]], config: CheckConfig, measured: dict[str, float], tokens: float, data: str
) -> dict[str, Any]:
    """The first prediction of this run: of its folder where one names it, else of its N and D."""
    own = [line for line in register if line.get("run") and Path(line["run"]).absolute() == config.run.absolute()]
    for line in own or [line for line in register if not line.get("run")]:
        size = measured.get(str(line.get("count")), math.inf)
        near = abs(size / line["parameters"] - 1) <= SAME and abs(tokens / line["tokens"] - 1) <= SAME
        if near and line.get("data") and data != line["data"]:
            raise DataError(
                f"{config.run}: expected the data {line['data'][:12]}… that was predicted for, got {data[:12]}…"
            )
        if near:
            return line
    raise DataError(
        f"{config.predictions}: expected a prediction for {measured['total']:.4g} parameters "
        f"({measured['non_embedding']:.4g} without embeddings) and {tokens:.4g} tokens, got {len(register)} others"
    )


def in_time(prediction: dict[str, Any], config: CheckConfig, began: float, ended: float) -> None:
    """Raises DataError for a prediction that could have known something of the run."""
    if prediction["time"] >= began:
        when = "ended" if prediction["time"] >= ended else "begun"
        raise DataError(
            f"{config.run}: expected a prediction from before the run, got one registered when it had {when}; "
            "predict first, then train"
        )
