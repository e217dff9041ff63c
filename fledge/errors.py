"""The exception tree. Everything fledge raises on purpose is a `FledgeError`.

A message reads `place: expected X, got Y; remedy`. The class says who can mend it, and `exit_code`
is what the command line returns (docs/exit-codes.md).
"""

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: state was saved, the same command continues
EXIT_CTRL_C = 130  # 128 + SIGINT, as shells count


class FledgeError(Exception):
    """Root of every error raised on purpose."""

    exit_code = EXIT_FAILED


class ConfigError(FledgeError):
    """A configuration, flag or config.json can't be used as written."""

    exit_code = EXIT_USAGE


class DataError(FledgeError):
    """Text, rows or shards are missing, malformed or changed."""


class TokenizerError(FledgeError):
    """A tokenizer file or a text can't be handled."""


class CheckpointError(FledgeError):
    """A checkpoint or model folder is missing, damaged, unsafe or from a later release."""


class QualityError(FledgeError):
    """A model lost more quality by being made smaller than was allowed; it was not written."""


class RunLockedError(FledgeError):
    """Another live process owns the run folder."""


class NonFiniteError(FledgeError):
    """A loss or gradient is NaN or infinite and the policy says stop."""


class SpikeError(FledgeError):
    """A loss or gradient norm is far above those before it and the policy says stop."""


class AgreementError(FledgeError):
    """Training and engine give the tokens of a rollout different probabilities: one of them computes another model."""


class Interrupted(FledgeError):
    """A signal asked the run to stop; its state has been saved."""

    exit_code = EXIT_INTERRUPTED


class RankError(FledgeError):
    """Another process of the run hangs, was killed or can't be reached."""


class PeerError(FledgeError):
    """Another process of the run failed first and says why: this one ends with the same code and says nothing."""

    def __init__(self, rank: int, exit_code: int):
        super().__init__(f"rank {rank} failed")
        self.rank, self.exit_code = rank, exit_code


class RequestError(FledgeError):
    """A generation request is invalid: the caller's fault (HTTP 400).

    `param` names the field and `code` is OpenAI's machine-readable reason, each None when there is none.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.param = param
        self.code = code


class CapacityError(FledgeError):
    """The engine or server has no room for the request now (HTTP 503)."""


class EngineError(FledgeError):
    """The forward pass or the engine process failed: the server's fault (HTTP 500)."""
