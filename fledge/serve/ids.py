"""Identifiers that the server hands out. Random, so that nobody can guess or count another caller's."""

from __future__ import annotations

import secrets


def new_request_id() -> str:
    return "req_" + secrets.token_hex(12)


def new_reply_id(prefix: str) -> str:
    """`chatcmpl-…` or `cmpl-…`."""
    return f"{prefix}-{secrets.token_hex(12)}"
