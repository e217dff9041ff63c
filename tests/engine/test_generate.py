"""`fledge generate`: standard output is the prompt, its continuation, one newline; the figures go to --json."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fledge.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
SAYS = "stub:text=%20there%F0%9F%98%80"


def run(*words: str) -> int:
    return main(["generate", *words])


def test_standard_output_is_the_prompt_its_continuation_and_one_newline(capfd):
    assert run(SAYS, "--prompt", "Hello", "--temperature", "0") == 0
    out, err = capfd.readouterr()
    assert (out, err) == ("Hello there😀\n", "")


def test_the_empty_prompt_is_bos_alone(capfd):
    assert run(SAYS, "--prompt", "", "--max-tokens", "4", "--temperature=0", "--json") == 0
    result = json.loads(capfd.readouterr().out)
    assert result["prompt_tokens"] == 1 and result["choices"][0]["text"] == " the"


def test_a_prompt_file_is_taken_to_the_byte(tmp_path, capfd):
    (tmp_path / "prompt.txt").write_bytes("line one\n\n  é: [x]\n".encode())
    assert run(SAYS, "--prompt-file", str(tmp_path / "prompt.txt"), "--stop", "re") == 0
    assert capfd.readouterr().out == "line one\n\n  é: [x]\n the\n"


def test_the_prompt_may_come_from_standard_input_and_the_locale_does_not_matter():
    command = [sys.executable, "-m", "fledge", "generate", SAYS, "--prompt-file", "-"]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, input="é日".encode(), capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "é日 there😀\n".encode())


def test_json_holds_every_figure_and_standard_output_nothing_else(capfd):
    words = ["--max-tokens", "5", "--n", "2", "--logprobs", "2", "--prompt-logprobs", "--seed", "4", "--ignore-eos"]
    assert run("stub:", "--prompt", "Hi", "--json", *words) == 0
    (line,) = capfd.readouterr().out.splitlines()
    result = json.loads(line)
    assert (result["prompt"], result["prompt_tokens"], result["generated_tokens"]) == ("Hi", 3, 10)
    assert result["tokens_per_second"] > 0
    first, second = result["choices"]
    assert first["token_ids"] != second["token_ids"] and first["finish_reason"] == "length"
    for choice in (first, second):
        assert [one["token_id"] for one in choice["logprobs"]] == choice["token_ids"]
        assert all(len(one["top"]) == 2 and one["logprob"] <= one["top"][0]["logprob"] for one in choice["logprobs"])
    assert result["prompt_logprobs"][0] is None and len(result["prompt_logprobs"]) == 3
    assert result["prompt_logprobs"][1]["token"] == "H"
    assert math.isfinite(result["prompt_logprobs"][1]["logprob"])


def test_every_sampling_field_is_a_flag_and_changes_what_it_should(capfd):
    def text(*words: str) -> str:
        assert run("stub:", "--prompt", "Hi", "--max-tokens", "8", *words) == 0
        return capfd.readouterr().out

    assert text("--seed", "1") == text("--seed", "1") != text("--seed", "2")
    assert text("--top-k", "1", "--seed", "1") == text("--temperature", "0") == text("--top-p", "1e-9")
    assert text("--logit-bias", "{122: 100}", "--temperature", "0") == "Hizzzzzzzz\n"
    assert text("--logit-bias", "{122: 100}", "--temperature", "0", "--repetition-penalty", "100") != "Hizzzzzzzz\n"
    greedy = text("--temperature", "0")
    assert text("--temperature", "0", "--stop-token-ids", f"[{ord(greedy[2])}]") == "Hi\n"
    assert text("--temperature", "0", "--stop", greedy[4:6]) == greedy[:4] + "\n"


def test_several_answers_come_one_after_another(capfd):
    assert run("stub:", "--prompt", "Hi", "--n", "3", "--max-tokens", "4", "--top-k", "40") == 0
    out, err = capfd.readouterr()
    assert out.count("Hi") == 3 and out.endswith("\n") and "answer 3 of 3" in err


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["--prompt", "x", "--temperature", "-1"], 2, "temperature: expected a number in 0..100, got -1"),
        (["--prompt", "x", "--n", "1000000000"], 2, "n: expected 1..16"),
        (["--prompt", "x", "--max-tokens", "0"], 2, "max_tokens: expected at least 1"),
        (["--prompt", "x", "--logit-bias", "{a: 1}"], 2, "logit_bias: expected token ids as keys, got 'a'"),
        (["--prompt", "x", "--max-tokens", "511"], 1, "context: expected at most 512 tokens, got 513"),
        (["--prompt", "x", "--prompt-file", "y"], 2, "expected one of --prompt TEXT and --prompt-file FILE"),
        ([], 2, "expected one of --prompt TEXT and --prompt-file FILE"),
        (["--prompt-file", "/nowhere/prompt.txt"], 1, "prompt.txt: can't be read"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(words, code, message, capfd):
    assert run("stub:", *words) == code
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and message in err and err.count("\n") == 1


def test_a_prompt_file_that_is_not_utf8_is_refused_with_the_place(tmp_path, capfd):
    (tmp_path / "prompt.txt").write_bytes(b"a\x80b")
    assert run("stub:", "--prompt-file", str(tmp_path / "prompt.txt")) == 1
    assert "prompt: expected UTF-8 text, got another byte at character 1" in capfd.readouterr().err


def test_no_max_tokens_fills_the_context(capfd):
    assert run("stub:context_tokens=32", "--prompt", "Hello", "--max-tokens", "null", "--ignore-eos", "--json") == 0
    assert json.loads(capfd.readouterr().out)["generated_tokens"] == 26


def test_a_failing_model_is_one_line(capfd):
    assert run("stub:poison=!", "--prompt", "bad!") == 1
    out, err = capfd.readouterr()
    assert out == "" and err.splitlines()[-1].startswith("error: engine: the forward pass failed (RuntimeError)")


def test_a_model_without_bos_asks_for_text_instead_of_an_empty_prompt():
    from fledge.cli.generate import encode_prompt
    from fledge.errors import ConfigError

    tokenizer = SimpleNamespace(bos_id=None, encode=lambda text: [1] * len(text))
    assert encode_prompt(tokenizer, "ab") == (1, 1)
    with pytest.raises(ConfigError, match="no BOS token"):
        encode_prompt(tokenizer, "")


def test_on_a_terminal_the_text_comes_while_it_is_made():
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "fledge", "generate", "stub:text=abcdef&delay_ms=150", "--prompt", "P:"]
    with subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL) as child:
        os.close(theirs)
        pieces = []
        try:
            while piece := os.read(ours, 1000):
                pieces.append(piece)
        except OSError:
            pass  # the other end of a terminal is gone: Linux says EIO
        os.close(ours)
        assert child.wait(30) == 0
    assert b"".join(pieces) == b"P:abcdef\r\n" and len(pieces) >= 4


def test_constraints_are_flags_and_the_answer_matches(tmp_path, capfd):
    (tmp_path / "schema.json").write_text('{"enum": ["left", {"k": [1, null]}]}')
    (tmp_path / "grammar.lark").write_text('start: "<" /[xy]{2}/ ">"')
    words = ["generate", "stub:", "--prompt", "Hi", "--max-tokens", "400", "--json"]
    for flags, answers in (
        (["--json-schema", str(tmp_path / "schema.json")], {'"left"', '{"k":[1,null]}'}),
        (["--grammar", str(tmp_path / "grammar.lark")], {"<xx>", "<xy>", "<yx>", "<yy>"}),
        (["--regex", "a|bc"], {"a", "bc"}),
        (["--choice", "one", "--choice", "two"], {"one", "two"}),
    ):
        assert main([*words, *flags]) == 0
        (choice,) = json.loads(capfd.readouterr().out)["choices"]
        assert "".join(choice["text"].split()) in answers and choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (
            ["--regex", "a", "--choice", "b"],
            2,
            "choice: expected one constraint, got regex beside it|regex: expected one",
        ),
        (["--json-schema", "/nowhere.json"], 1, "/nowhere.json: can't be read"),
        (["--regex", "["], 2, "regex: can't be used"),
        (["--choice", ""], 2, "choice: expected texts that are not empty"),
    ],
)
def test_a_bad_constraint_is_one_line(flags, code, message, capfd):
    assert main(["generate", "stub:", "--prompt", "Hi", *flags]) == code
    assert re.search(message, capfd.readouterr().err)


def test_a_beam_search_prints_the_best_answers_and_their_scores(capfd):
    words = ["generate", "stub:", "--prompt", "Hi", "--max-tokens", "6", "--json"]
    assert main([*words, "--beams", "4", "--n", "3"]) == 0
    choices = json.loads(capfd.readouterr().out)["choices"]
    scores = [choice["score"] for choice in choices]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    assert main([*words, "--temperature", "0"]) == 0
    (greedy,) = json.loads(capfd.readouterr().out)["choices"]
    assert "score" not in greedy
    assert main([*words, "--beams", "2", "--early-stopping", "never", "--length-penalty", "0"]) == 0
    capfd.readouterr()
    assert main([*words, "--beams", "4", "--beam-groups", "4", "--diversity-penalty", "50", "--n", "4"]) == 0
    groups = json.loads(capfd.readouterr().out)["choices"]
    assert len({choice["text"][0] for choice in groups}) == 4 > len({choice["text"][0] for choice in choices})
    for flags, message in (
        (["--beam-groups", "2"], "beam_groups: expected beams above 1"),
        (["--beams", "4", "--beam-groups", "3", "--diversity-penalty", "1"], "a divisor of n_beams, 4"),
        (["--beams", "2", "--top-p", "0.5"], "top_p: does not go with a search"),
        (["--beams", "2", "--n", "3"], "n: expected 1..2, the number of beams"),
        (["--penalty-alpha", "0.6", "--top-k", "4"], "expected a model, got a stub"),
        (["--beams", "2", "--regex", "a"], "regex: does not go with a search"),
    ):
        assert main([*words, *flags]) != 0
        assert message in capfd.readouterr().err
