"""What tuning trains, counted before anything is allocated: the published numbers."""

from __future__ import annotations

import pytest

from fledge.cli.main import main
from fledge.config import from_dict
from fledge.tune.attach import trained_parameters, tune
from fledge.tune.config import ShowTunedConfig, TuneConfig
from fledge.tune.show import show
from tests.compress.tiny import tiny

GPT3 = {"family": "gpt2", "width": 12288, "layers": 96, "heads": 96, "context_tokens": 2048, "vocab_size": 50257}
ROBERTA = {"family": "roberta", "width": 1024, "layers": 24, "heads": 16, "context_tokens": 512, "vocab_size": 50265}
XXL = {"family": "deberta-v2", "width": 1536, "layers": 48, "heads": 24, "context_tokens": 512, "vocab_size": 128100}
PYTHIA = {"family": "gpt_neox", "width": 768, "layers": 12, "heads": 12, "context_tokens": 2048, "vocab_size": 50304}
PHI2 = {"family": "phi", "width": 2560, "layers": 32, "heads": 32, "context_tokens": 2048, "vocab_size": 51200}
BERT = {"family": "bert", "width": 768, "layers": 12, "heads": 12, "context_tokens": 512, "vocab_size": 28996}
PUBLISHED = [
    # Hu et al. 2021, with q and v of GPT-3 at ranks 1, 4, 8
    (GPT3, 1, 4_718_592), (GPT3, 4, 18_874_368), (GPT3, 8, 37_748_736),
    ({"preset": "roberta-base"}, 8, 294_912), (ROBERTA, 8, 786_432), (XXL, 16, 4_718_592),
    ({"preset": "gpt2-medium"}, 4, 393_216), ({"preset": "gpt2-large"}, 4, 737_280),
    # LitGPT's tables: q and v at rank 8
    (PYTHIA, 8, 294_912), ({"preset": "llama-2-7b"}, 8, 4_194_304), ({"preset": "llama-2-13b"}, 8, 6_553_600),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "rank", "wanted"), PUBLISHED)
def test_what_lora_trains_on_q_and_v_is_what_is_published(shape, rank, wanted):
    config = from_dict(ShowTunedConfig, {"model": shape, "tune": {"method": "lora", "rank": rank}})
    found = show(config, json=True)
    assert found["tuning"]["trainable"] == wanted
    assert found["tuning"]["frozen"] == found["parameters"]
    other = from_dict(ShowTunedConfig, {"model": shape, "tune": {"method": "lora", "rank": rank + 1}})
    assert show(other, json=True)["tuning"]["trainable"] != wanted  # the control


def test_the_count_is_that_of_the_built_model_and_its_bytes_follow_from_it(capsys):
    asked = {"width": 64, "layers": 2, "heads": 4, "context_tokens": 64, "vocab_size": 263}
    tuning = {"method": "lora", "targets": ["q", "v"]}
    shown = show(from_dict(ShowTunedConfig, {"model": asked, "tune": tuning, "rows": 2}), json=True)
    found = shown["tuning"]
    model = tune(tiny("llama"), TuneConfig("lora"))
    assert found["trainable"] == trained_parameters(model)
    assert found["frozen"] == sum(p.numel() for p in tiny("llama").parameters())
    memory = found["memory"]
    assert memory["weights"] == 4 * (found["trainable"] + found["frozen"])
    assert memory["gradients"] == 4 * found["trainable"] and memory["optimizer"] == 8 * found["trainable"]
    assert memory["peak"] < shown["training_bytes"]["peak"]  # all weights take more
    words = [f"model.{key}={value}" for key, value in asked.items()]
    assert main(["show", *words, "--tune", "lora", "--rank", "2"]) == 0
    assert "tuning     lora: 1,024 trained beside" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "wanted"),
    [("prompt", 20 * 768), ("prefix", 20 * 2 * 12 * 768)],  # the prefix is PEFT's own example
)
def test_virtual_tokens_of_an_encoder_are_counted(method, wanted, capsys):
    words = [f"model.{key}={value}" for key, value in BERT.items()]
    assert main(["show", *words, "--tune", method]) == 0
    assert f"{method}: {wanted:,} trained beside" in capsys.readouterr().out
