"""Prompt and prefix tuning: PEFT's logits both ways, documents that don't see each other's, runs that go on, and the
engine."""

from __future__ import annotations

import copy
import json
import shutil

import peft
import pytest
import torch
import transformers

from fledge.batch import OneDocument, Packed, Tokens, one_document, padded
from fledge.cli.main import main
from fledge.engine.loaded import load
from fledge.engine.row import Row
from fledge.engine.runner import Runner, copied
from fledge.errors import CheckpointError, ConfigError, Interrupted
from fledge.model.folder import load_model, save_model
from fledge.model.safetensors_file import SafetensorsFile, write_safetensors
from fledge.recipes.sft import sft
from fledge.text.tokenizer import byte_level
from fledge.tune.attach import trained_parameters, tune
from fledge.tune.config import TuneConfig
from fledge.tune.folder import load_adapter, save_adapter
from fledge.tune.merge import served
from tests.compress.tiny import ids, logits, tiny
from tests.parity.cases import BOTH, ENCODERS, first_of_each_family
from tests.parity.reference import limit, some_ids
from tests.tune.running import config_for, made_place
from tests.tune.test_sft import greedy
from tests.tune.theirs import base, our_logits, ours, ours_with_adapter, their_logits

N = 5
CAUSAL = {"task_type": "CAUSAL_LM", "num_virtual_tokens": N}
THEIRS = {
    "prompt": peft.PromptTuningConfig(**CAUSAL),
    "prefix": peft.PrefixTuningConfig(**CAUSAL),
    "projected": peft.PrefixTuningConfig(**CAUSAL, prefix_projection=True, encoder_hidden_size=7),
}
OURS = {
    "prompt": TuneConfig("prompt", virtual_tokens=N),
    "prefix": TuneConfig("prefix", virtual_tokens=N),
    "projected": TuneConfig("prefix", virtual_tokens=N, projection=7),
}
QUICK = ("llama", "gpt2", "gptj", "gemma2")
DECODERS = [name for name in first_of_each_family() if name not in BOTH and name not in ENCODERS]
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in DECODERS if name not in QUICK)]
NO_PREFIX = ("gpt1", "falcon")  # transformers drops what it is given; PEFT gets the one head's shape wrong
BALANCED = ("mixtral", "qwen3-moe", "olmoe")
pytestmark = pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")


def theirs(name: str, model) -> torch.Tensor:
    """Their logits of the tokens, without those of virtual ones that some of their models give too."""
    return their_logits(name, model)[:, -some_ids(2).shape[1] :]


@pytest.mark.parametrize("kind", list(THEIRS))
@pytest.mark.parametrize("name", NAMES)
def test_peft_and_this_package_have_the_same_logits_whoever_wrote_the_folder(name, kind, tmp_path):
    if name in NO_PREFIX and kind != "prompt":
        return
    asked = copy.deepcopy(THEIRS[kind])  # PEFT writes the model's numbers into it
    made = peft.get_peft_model(base(name, tmp_path / "base"), asked).eval()
    made.save_pretrained(tmp_path / "adapter")
    wanted = theirs(name, made)
    model = ours_with_adapter(tmp_path)
    assert (our_logits(name, model) - wanted).abs().max() <= limit(wanted)
    assert (our_logits(name, served(model)) - wanted).abs().max() <= limit(wanted)
    assert (our_logits(name, ours(tmp_path)) - wanted).abs().max() > 100 * limit(wanted)  # the control
    config = OURS[kind]
    if name in BALANCED:
        with pytest.raises(ConfigError, match="expected no load balance"):
            tune(ours(tmp_path), config)
        return
    model = tune(ours(tmp_path), config, 3).eval()
    assert trained_parameters(model) == sum(p.numel() for p in made.parameters() if p.requires_grad)
    save_adapter(model, tmp_path / "own", config, tmp_path / "base")
    own = peft.PeftModel.from_pretrained(base(name, tmp_path / "base"), tmp_path / "own").eval()
    wanted = our_logits(name, model)
    assert (theirs(name, own) - wanted).abs().max() <= limit(wanted)


def test_what_training_makes_of_the_same_batch_is_what_peft_makes_of_it(tmp_path):
    """The gradient of the mean loss by the virtual tokens, padding and all."""
    save_model(tiny("llama"), tmp_path / "base")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    their = peft.get_peft_model(reference, copy.deepcopy(THEIRS["prompt"])).eval()
    their.save_pretrained(tmp_path / "adapter")
    model = load_adapter(load_model(tmp_path / "base"), tmp_path / "adapter")
    model.virtual.requires_grad_()
    rows = [ids(1, 9)[0].tolist(), ids(1, 6, 5)[0].tolist()]
    tokens, layout = padded(rows)
    there = tokens.doc >= 0
    labels = torch.where(there, tokens.ids, -100)
    labels[:, 0] = -100  # a document's first token is nobody's target here; there the last virtual one has it
    their(input_ids=tokens.ids, attention_mask=there.long(), labels=labels).loss.backward()
    targets, weight = tokens.ids.roll(-1, 1), there.roll(-1, 1).float()
    weight[:, -1] = 0
    (model.loss_sum(tokens, layout, targets, weight) / weight.sum()).backward()
    wanted = their.prompt_encoder.default.embedding.weight.grad
    assert (model.virtual.rows.grad - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("virtual"))


@pytest.mark.parametrize("kind", list(OURS))
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_every_document_of_a_packed_or_padded_batch_has_virtual_tokens_of_its_own(family, kind):
    model = tune(tiny(family), OURS[kind], 1).eval()
    rows, lengths = ids(4, 12), (12, 7, 5, 9)
    alone = [model(one_document(row[None, :n]), OneDocument())[0] for row, n in zip(rows, lengths, strict=True)]
    tokens, layout = padded([row[:n].tolist() for row, n in zip(rows, lengths, strict=True)])
    together = model(tokens, layout)
    for b, n in enumerate(lengths):
        torch.testing.assert_close(together[b, :n], alone[b], rtol=0, atol=1e-5 * float(alone[b].abs().max()))
    # two rows of 12: one document; three, the last one padding
    doc = torch.tensor([[0] * 12, [0] * 7 + [1] * 5, [0] * 9 + [-1] * 3])
    pos = torch.tensor([[*range(12)], [*range(7), *range(5)], [*range(9), 0, 0, 0]])
    packed = torch.cat((rows[0], rows[1][:7], rows[2][:5], rows[3][:9], torch.zeros(3, dtype=torch.int64))).view(3, 12)
    found = model(Tokens(packed, pos, doc), Packed((0, 12, 19, 24, 33, 36), 12))
    for part, wanted in zip((found[0], found[1, :7], found[1, 7:], found[2, :9]), alone, strict=True):
        torch.testing.assert_close(part, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    bare = logits(tiny(family), rows[:1])[0]
    assert (bare - alone[0]).abs().max() > 1e-2  # the control


@pytest.mark.parametrize("kind", list(OURS))
@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom"])
def test_the_engine_gives_the_logits_of_a_whole_pass_in_chunks_and_token_by_token(family, kind):
    more = {"window": 8, "kv_heads": 2, "head_channels": 16} if family == "gemma2" else {}
    model = tune(tiny(family, **more), OURS[kind], 1).eval()
    rows = ids(1, 20)[0]
    wanted = logits(model, rows[None])[0]
    runner = Runner(served(copied(model)), 2)
    assert runner.context_tokens == model.config.context_tokens - N and runner.compiled is None
    blocks, found = (0, 1), []
    for start, end in ((0, 9), (9, 17), (17, 18), (18, 19), (19, 20)):
        row = Row(blocks, start, tuple(rows[start:end].tolist()), True)
        found.append(torch.as_tensor(runner.forward([row])[0]))
    assert (torch.cat(found) - wanted).abs().max() <= 1e-5 * max(1, float(wanted.abs().max()))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return made_place(tmp_path_factory.mktemp("virtual"))


ASKED = {
    "prompt": {"method": "prompt", "virtual_tokens": N, "init": "text", "init_text": "say it"},
    "prefix": {"method": "prefix", "virtual_tokens": N},
    "projected": {"method": "prefix", "virtual_tokens": N, "projection": 9},
}


@pytest.mark.parametrize(
    "kind",
    ["prompt", pytest.param("prefix", marks=pytest.mark.slow), pytest.param("projected", marks=pytest.mark.slow)],
)
def test_a_run_learns_goes_on_to_the_same_bits_and_is_served_as_it_was_trained(kind, place, tmp_path, capsys):
    rate = {"learning_rate": 0.1}
    sft(config_for(place, tmp_path / "whole", ASKED[kind], **rate))
    events = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["kind"] == "step"]
    assert losses[-1] < losses[0] - 0.05
    with pytest.raises(Interrupted):
        sft(config_for(place, tmp_path / "stopped", ASKED[kind], stop_after_steps=7, **rate))
    sft(config_for(place, tmp_path / "stopped", ASKED[kind], **rate))
    files = [(tmp_path / run / "model/adapter_model.safetensors").read_bytes() for run in ("whole", "stopped")]
    assert files[0] == files[1]
    prompt = load(tmp_path / "whole").chat_ids("say 2")
    own = load_adapter(load_model(place / "base"), tmp_path / "whole", place / "base")
    with torch.no_grad():
        wanted = greedy(lambda found: own(one_document(found), OneDocument()), prompt, 12)
    answer = load(tmp_path / "whole").complete(prompt, max_tokens=12, temperature=0, ignore_eos=True)[0]
    assert list(answer.token_ids) == wanted
    reference = transformers.AutoModelForCausalLM.from_pretrained(place / "base")
    their = peft.PeftModel.from_pretrained(reference, tmp_path / "whole/model").eval()
    with torch.no_grad():
        assert greedy(lambda found: their(found).logits, prompt, 12) == wanted
    assert main(["generate", str(tmp_path / "whole"), "--prompt", "say 2", "--max-tokens", "4"]) == 0
    assert main(["merge", str(place / "base"), str(tmp_path / "whole"), "--out", str(tmp_path / "out")]) == 2
    assert "virtual tokens, which no weight can stand for" in capsys.readouterr().err


def test_a_prompt_begins_as_a_text_or_as_tokens_of_the_vocabulary():
    model = tiny("llama")
    table = model.embedding.weight.detach().clone()
    text = TuneConfig("prompt", virtual_tokens=5, init="text", init_text="ab")
    assert torch.equal(tune(tiny("llama"), text, 0, [7, 9]).virtual.rows.detach(), table[[7, 9, 7, 9, 7]])
    words = tune(tiny("llama"), TuneConfig("prompt", virtual_tokens=5, init="vocabulary"), 1).virtual.rows
    assert all(bool((table == row).all(1).any()) for row in words.detach())
    other = tune(tiny("llama"), TuneConfig("prompt", virtual_tokens=5, init="vocabulary"), 2).virtual.rows
    assert not torch.equal(words, other)
    with pytest.raises(ConfigError, match="expected a text with tokens"):
        tune(tiny("llama"), text, 0, [])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_a_prefix_begins_as_what_the_layers_make_of_a_texts_tokens(family):
    """So that a decoder gives what follows such a text the logits that it has behind the text itself."""
    text, more = ids(1, N)[0].tolist(), ids(1, 9, 5)
    asked = TuneConfig("prefix", virtual_tokens=N, init="text", init_text="a")
    wanted = logits(tiny(family), torch.cat((torch.tensor([text]), more), 1))[:, N:]
    assert (logits(tune(tiny(family), asked, 0, text), more) - wanted).abs().max() <= limit(wanted)
    words = TuneConfig("prefix", virtual_tokens=N, init="vocabulary")
    other = logits(tune(tiny(family), words, 1), more)
    assert (other - wanted).abs().max() > 100 * limit(wanted)  # the control


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"virtual_tokens": 0}, "tune.virtual_tokens: expected 1 to"),
        ({"projection": 4}, "tune.projection: read with tune.method=prefix only"),
        ({"init": "text"}, "tune.init_text: expected a text"),
        ({"init_text": "a"}, "tune.init_text: expected a text with tune.init=text"),
        ({"targets": ("q",)}, "tune.targets: expected none with tune.method=prompt"),
        ({"method": "prefix", "init": "vocabulary", "projection": 4}, "tune.init: read with .*, got tune.projection"),
        ({"method": "lora", "init_text": "a"}, "tune.init_text: read with tune.method=prompt, or prefix"),
        ({"method": "lora", "init": "vocabulary"}, "tune.init: read with tune.method=prompt, or prefix"),
    ],
)
def test_numbers_that_no_method_reads_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        TuneConfig(**{"method": "prompt", **wrong})


def test_models_that_can_have_no_virtual_tokens_are_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="fewer than the context of 64"):
        tune(tiny("llama"), TuneConfig("prefix", virtual_tokens=64))
    with pytest.raises(ConfigError, match="merge them first"):
        tune(tune(tiny("llama"), OURS["prefix"]), TuneConfig("lora"))
    with pytest.raises(ConfigError, match="adapters beside them"):
        save_model(tune(tiny("llama"), OURS["prefix"]), tmp_path)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    save_model(tiny("llama"), folder / "base", byte_level())
    for kind in ("prompt", "prefix"):
        model = tune(load_model(folder / "base"), OURS[kind])
        save_adapter(model, folder / kind, OURS[kind], folder / "base")
    return folder


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_virtual_tokens": 0}, "num_virtual_tokens: expected 1 to"),
        ({"num_virtual_tokens": True}, "num_virtual_tokens: expected 1 to"),
        ({"num_virtual_tokens": 64}, "fewer than the context of 64"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules: expected 1"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save'"),
        ({"r": 8}, "'r'"),
        ({"num_virtual_tokens": 6}, "expected prompt_embeddings"),
    ],
)
def test_configs_of_strangers_that_do_not_fit_are_refused(good, tmp_path, kind, change, message):
    shutil.copytree(good / kind, tmp_path / "adapter")
    load_adapter(load_model(good / "base"), tmp_path / "adapter")  # the control
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((ConfigError, CheckpointError), match=message):
        load_adapter(load_model(good / "base"), tmp_path / "adapter")


@pytest.mark.parametrize("how", ["none", "another name", "wider", "not finite", "whole numbers", "one more"])
def test_tensors_of_strangers_that_do_not_fit_are_refused(good, tmp_path, how):
    shutil.copytree(good / "prefix", tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_model.safetensors"
    with SafetensorsFile(path) as file:
        found = {name: file.read(name) for name in file.entries}
    rows = found["prompt_embeddings"]
    changed = {
        "none": {},
        "another name": {"rows": rows},
        "wider": {"prompt_embeddings": torch.zeros(rows.shape[0], rows.shape[1] + 1)},
        "not finite": {"prompt_embeddings": rows / 0},
        "whole numbers": {"prompt_embeddings": rows.to(torch.int64)},
        "one more": {**found, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": rows},
    }[how]
    write_safetensors(path, changed)
    with pytest.raises(CheckpointError, match="prompt_embeddings"):
        load_adapter(load_model(good / "base"), tmp_path / "adapter")
