"""The access log: one line per request on standard error, without prompt text, query strings or secrets."""

from __future__ import annotations

import json
import re
import sys
import time
import traceback
from typing import Any, TextIO

from fledge.errors import EngineError

SECRET = re.compile(r"(?i)\b(?:sk|pk|hf|ghp|key|bearer|token)[-_ =:][A-Za-z0-9._~+/-]{6,}=*")
MAX_TEXT = 120


class AccessLog:
    """Writes one event a line: `json`, `plain` (for people) or `off`. Control characters never reach the stream."""

    def __init__(self, form: str, secrets: tuple[str, ...] = (), stream: TextIO | None = None):
        self.form = form
        self.secrets = tuple(secret for secret in secrets if secret)
        self.stream = stream or sys.stderr

    def answer(self, **values: Any) -> None:
        """One answered request."""
        if self.form == "off":
            return
        clean = {key: self.clean(value) for key, value in values.items() if value is not None}
        if self.form == "json":
            self.write(json.dumps({"time": round(time.time(), 3), **clean}))
            return
        head = f"{clean.pop('method', '')} {clean.pop('path', '')} {clean.pop('status', '')}"
        rest = " ".join(f"{key}={value}" for key, value in clean.items())
        self.write(f"{time.strftime('%H:%M:%S')} {head} {rest}")

    def failure(self, request_id: str, error: BaseException) -> None:
        """Where an error came from: types and lines. Of messages only the engine's, since others may quote a prompt."""
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        places = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
        line: dict[str, Any] = {"time": round(time.time(), 3), "event": "failure", "request_id": request_id}
        if isinstance(error, EngineError):
            line["message"] = self.clean(str(error))
        self.write(json.dumps({**line, "error": type(error).__name__, "at": places}))

    def clean(self, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        for secret in self.secrets:
            value = value.replace(secret, "[redacted]")
        value = SECRET.sub("[redacted]", value)
        value = value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + "…"
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)

    def write(self, line: str) -> None:
        try:
            self.stream.write(line + "\n")
            self.stream.flush()
        except (OSError, ValueError):
            pass  # a closed or full log must not fail a request
