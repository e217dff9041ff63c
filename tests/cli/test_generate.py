"""Exit codes and lengths of `fledge generate`: what a user asked for wrongly, and what was only left as it is."""

from __future__ import annotations

import json
import re

import pytest

from fledge.cli.main import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--regex", "("], "regex: can't be used: unclosed group"),
        (["--regex", "a|(?=b)"], "regex: can't be used: look-around, including look-ahead and look-behind, is not"),
        (["--stop-token-ids", "[9999]"], r"stop_token_ids: expected ids in 0\.\.262, got 9999"),
        (["--beams", "100"], r"beams: expected 1\.\.64, got 100"),
        (["--beams", "4", "--n", "5"], r"n: expected 1\.\.4, the number of beams, got 5"),
        (["--beams", "4", "--beam-groups", "3", "--diversity-penalty", "1"], "beam_groups: expected a divisor"),
        (["--beams", "2", "--length-penalty", "50"], r"length_penalty: expected -10\.\.10, got 50"),
    ],
)
def test_a_wrong_flag_is_named_as_it_was_typed_and_is_wrong_use(words, message, capfd):
    assert main(["generate", "stub:", "--prompt", "x", *words]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert re.match(f"error: {message}", error) and "llguidance" not in error


def test_a_prompt_that_is_too_long_is_no_wrong_flag(capfd):
    """The control: the same words fit another model."""
    assert main(["generate", "stub:context_tokens=16", "--prompt", "x" * 16]) == 1
    assert "context: expected at most 16 tokens, got 18" in capfd.readouterr().err


def asked(capfd, *words: str) -> tuple[int, str]:
    """(tokens generated, what was said beside)."""
    assert main(["generate", "stub:context_tokens=128", "--ignore-eos", "--json", *words]) == 0
    out, error = capfd.readouterr()
    return json.loads(out)["generated_tokens"], error


def test_the_usual_length_is_cut_to_what_the_context_leaves_and_that_is_said(capfd):
    n, error = asked(capfd, "--prompt", "abc")
    assert n == 124 and "the answer was cut: the context of 128 tokens is full" in error
    assert asked(capfd, "--prompt", "abc", "--overflow", "sinks")[0] == 128
    assert asked(capfd, "--prompt", "x" * 200, "--overflow", "truncate")[0] == 32
    n, error = asked(capfd, "--prompt", "abc", "--max-tokens", "124")  # the control: a length of one's own
    assert n == 124 and "was cut" not in error
    assert main(["generate", "stub:context_tokens=128", "--prompt", "abc", "--beams", "2"]) == 0
    capfd.readouterr()
    assert main(["generate", "stub:context_tokens=128", "--prompt", "abc", "--max-tokens", "125"]) == 1
    assert "context: expected at most 128 tokens, got 129" in capfd.readouterr().err
