"""One run of fledge on the processes that Ray Train starts:

    python runs/launch/ray_train.py 4 pretrain runs/shakespeare-char.yaml train.rows=16

After the number of processes, the words of any `fledge` verb that trains; messages, result (--json) and exit code are
the verb's own. Needs `pip install 'fledge[ray]'`, and a run folder that all machines see. RAY_ADDRESS names a cluster.
"""

from __future__ import annotations

import sys

from fledge.cli.main import guarded, named, print_json
from fledge.cli.parse import find_verb, read_config
from fledge.errors import EXIT_OK, ConfigError


def launch(words: list[str]) -> int:
    """Raises what the verb raises."""
    from fledge.train.ray import run

    if len(words) < 2 or not words[0].isdecimal():
        raise ConfigError("ray_train.py: expected a number of processes, then a verb of fledge and its words")
    verb, rest = find_verb(words[1:])
    config, line = read_config(verb, named(verb.config), rest)
    result = run(named(verb.run), config, int(words[0]))
    if line.json:
        print_json(result)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(guarded(launch, sys.argv[1:]))
