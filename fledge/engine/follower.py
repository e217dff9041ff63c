"""A rank above 0 of a server: `python -m fledge.engine.follower MODEL --config …` follows rank 0's engine."""

from __future__ import annotations

import argparse
import json
import sys

from fledge.config import from_dict
from fledge.engine.config import EngineConfig
from fledge.engine.ranks import shared_engine
from fledge.errors import EXIT_OK, FledgeError, PeerError


def main(arguments: list[str] | None = None) -> int:
    """Follow until rank 0 has finished. Gives the exit code."""
    parser = argparse.ArgumentParser(prog="fledge.engine.follower")
    parser.add_argument("model")
    parser.add_argument("--config", type=json.loads, default={})
    options = parser.parse_args(arguments)
    try:
        with shared_engine(options.model, from_dict(EngineConfig, options.config)):
            return EXIT_OK
    except PeerError as error:
        return error.exit_code  # the process that failed says why
    except FledgeError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
