"""Pruned models against the whole one with the same parts silenced, against transformers and torch's own pruning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.utils.prune as theirs
import transformers

from fledge.batch import OneDocument, one_document
from fledge.cli.main import main
from fledge.compress.prune import (
    Kept,
    evenly,
    gradient_importance,
    hold_zeros,
    kept_of,
    layer_importance,
    maps_of,
    sparsity,
    weight_importance,
    without,
    zero_smallest,
)
from fledge.compress.wanda import zero_least_used
from fledge.errors import ConfigError
from fledge.model.folder import load_model, save_model
from tests.parity.decoder_cases import CASES
from tests.parity.reference import randomised

IDS = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(1))
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=40, max_position_embeddings=32, bos_token_id=1, eos_token_id=2)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=61, n_embd=32, n_layer=4, n_head=4, n_inner=40, n_positions=32, bos_token_id=1, eos_token_id=2)),
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=40,
        max_position_embeddings=32)),
}  # fmt: skip


@pytest.fixture(params=MODELS)
def folder(request, tmp_path) -> Path:
    torch.manual_seed(4)
    path = tmp_path / request.param
    randomised(MODELS[request.param](), 0.2).eval().save_pretrained(path)
    return path


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(one_document(IDS), OneDocument())


@torch.no_grad()
def reference(folder: Path) -> torch.Tensor:
    kind = transformers.AutoModelForMaskedLM if "bert" in folder.name else transformers.AutoModelForCausalLM
    return kind.from_pretrained(folder).eval()(IDS).logits


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5 * max(1.0, float(b.abs().max())))


def saved(model, folder: Path) -> Path:
    path = folder.with_name("pruned-" + folder.name)
    save_model(model, path)
    return path


def test_a_model_without_neurons_is_the_whole_one_with_them_silenced(folder):
    model = load_model(folder)
    kept = kept_of(weight_importance(model, "neurons"), 0.4, "neurons")
    small = without(model, Kept(tuple(range(4)), neurons=kept))
    silent = load_model(folder)
    for number, block in enumerate(stack_of(silent).layers):
        gone = torch.ones(40, dtype=torch.bool)
        gone[kept[number]] = False
        with torch.no_grad():
            block.ffn.down.weight[:, gone] = 0.0
    assert close(logits(small), logits(silent)) and not close(logits(small), logits(model))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert close(logits(load_model(saved(small, folder))), reference(saved(small, folder)))


def stack_of(model):
    return model.decoder or model.encoder


def test_a_model_without_heads_is_the_whole_one_with_them_silenced_where_its_folder_can_say_so(folder):
    model = load_model(folder)
    kept = kept_of(weight_importance(model, "groups"), 0.5, "groups")
    if folder.name != "llama":  # heads times their width must be the model's there
        with pytest.raises(ConfigError):
            without(model, Kept(tuple(range(4)), groups=kept))
        return
    small = without(model, Kept(tuple(range(4)), groups=kept))
    silent = load_model(folder)
    for number, block in enumerate(stack_of(silent).layers):
        (gone,) = {0, 1} - set(kept[number].tolist())
        with torch.no_grad():
            block.attention.out.weight[:, gone * 16 : gone * 16 + 16] = 0.0
    assert close(logits(small), logits(silent)) and not close(logits(small), logits(model))
    assert close(logits(small), reference(saved(small, folder)))


def test_heads_with_norms_of_their_own_are_not_taken_apart(tmp_path):
    CASES["stablelm-normed"].model().save_pretrained(tmp_path)
    model = load_model(tmp_path)
    with pytest.raises(ConfigError, match="with a norm of each head's own; choose neurons or layers"):
        weight_importance(model, "groups")
    assert len(weight_importance(model, "neurons")) == 3


def test_a_model_without_layers_is_transformers_without_them(folder):
    model = load_model(folder)
    small = without(model, Kept((0, 2, 3)))
    kind = transformers.AutoModelForMaskedLM if folder.name == "bert" else transformers.AutoModelForCausalLM
    other = kind.from_pretrained(folder).eval()
    body = {"llama": lambda: other.model, "gpt2": lambda: other.transformer, "bert": lambda: other.bert.encoder}
    owner = body[folder.name]()
    name = {"llama": "layers", "gpt2": "h", "bert": "layer"}[folder.name]
    setattr(owner, name, torch.nn.ModuleList([layer for n, layer in enumerate(getattr(owner, name)) if n != 1]))
    if folder.name == "llama":
        other.config.num_hidden_layers = 3
    with torch.no_grad():
        wanted = other(IDS, **({} if folder.name == "bert" else {"use_cache": False})).logits
    assert close(logits(small), wanted) and not close(logits(small), logits(model))
    assert close(logits(small), reference(saved(small, folder)))
    assert evenly(12, 6) == (0, 2, 4, 6, 8, 10)  # as DistilBERT takes BERT's


@pytest.mark.parametrize("scope", ["map", "model"])
def test_zeroed_weights_are_those_that_torch_prunes(folder, scope):
    model, other = load_model(folder), load_model(folder)
    zero_smallest(model, 0.3, scope)
    pairs = [(part, "weight") for part in maps_of(other)]
    if scope == "model":
        theirs.global_unstructured(pairs, theirs.L1Unstructured, amount=0.3)
    else:
        for part, name in pairs:
            theirs.l1_unstructured(part, name, amount=0.3)
    for mine, (part, _) in zip(maps_of(model), pairs, strict=True):
        assert torch.equal(mine.weight, part.weight)
    assert sparsity(model) == pytest.approx(0.3, abs=2e-3)


def test_importance_is_what_its_formula_says(tmp_path):
    torch.manual_seed(4)
    randomised(MODELS["llama"](), 0.2).eval().save_pretrained(tmp_path)
    model = load_model(tmp_path).eval()
    neurons, groups = (gradient_importance(model, IDS, which) for which in ("neurons", "groups"))

    def loss(scale: float, which: str) -> float:
        """The loss with neuron 3, or group 1, of layer 2 scaled in all its weights."""
        changed = load_model(tmp_path).eval().double()
        block = changed.decoder.layers[2]
        with torch.no_grad():
            if which == "neuron":
                block.ffn.inward.gate.weight[3] *= scale
                block.ffn.inward.up.weight[3] *= scale
                block.ffn.down.weight[:, 3] *= scale
            else:
                for part, size in (("q", 16), ("k", 8), ("v", 8)):
                    getattr(block.attention.qkv, part).weight[size : 2 * size] *= scale
                block.attention.out.weight[:, 16:32] *= scale
            logits = changed(one_document(IDS[:, :-1]), OneDocument())
            return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten(), reduction="sum"))

    for which, mine in (("neuron", neurons[2][3]), ("group", groups[2][1])):
        slope = (loss(1 + 1e-4, which) - loss(1 - 1e-4, which)) / 2e-4
        assert float(mine) == pytest.approx(abs(slope), rel=2e-3)
    with torch.no_grad():
        hidden = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()(IDS, output_hidden_states=True)
    states = hidden.hidden_states[:4]  # the last one has the final norm
    turned = [1 - float(torch.cosine_similarity(a, b, dim=-1).mean()) for a, b in zip(states, states[1:], strict=False)]
    assert layer_importance(model, IDS)[:3] == pytest.approx(turned, abs=1e-5)


def test_the_verb_writes_a_smaller_folder_and_says_what_it_cost(tmp_path, capfd):
    from tests.data.corrupted import wordpiece

    tokenizer = wordpiece()
    torch.manual_seed(4)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=40, max_position_embeddings=32,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("the dog said: stop! and why? who (anna)? " * 40)
    neurons, wanda = ["--method", "neurons", "--share", "0.25"], ["--method", "wanda"]
    for words in (["--method", "layers"], ["--method", "heads"], neurons, wanda, []):
        out = tmp_path / "-".join(["out", *words])
        more = ["--calibration", str(text), "--rows", "4", "--row-tokens", "16"] if words else []
        assert main(["prune", str(tmp_path / "model"), str(out), *words, *more, "--evaluate", str(text), "--json"]) == 0
        result = json.loads(capfd.readouterr().out.splitlines()[-1])
        assert (result["parameters"]["after"] < result["parameters"]["before"]) == (words not in (wanda, []))
        assert result["quality"]["after"]["loss"] > 0 and result["tokens_per_second"]["after"] > 0
        assert (result["zeros"] > 0.4) == (words in (wanda, []))
        assert transformers.AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == (
            2 if "layers" in words else 4
        )
    assert main(["prune", str(tmp_path / "model"), str(tmp_path / "x"), *wanda]) != 0
    assert "expected text for method=wanda" in capfd.readouterr().err
    assert main(["prune", str(tmp_path / "model"), str(out), "--method", "layers"]) != 0  # the folder is taken
    assert "expected a new or empty folder" in capfd.readouterr().err
    assert main(["prune", str(tmp_path / "model"), str(tmp_path / "x"), "--method", "layers", "--keep", "[0,9]"]) != 0
    assert "expected layers below 4, got 9" in capfd.readouterr().err
    short = ["--calibration", str(text), "--row-tokens", "1"]  # which have no next token
    assert main(["prune", str(tmp_path / "model"), str(tmp_path / "x"), *neurons, *short]) != 0
    assert "row_tokens: expected at least 2" in capfd.readouterr().err
    assert not (tmp_path / "x").exists()


@torch.no_grad()
@pytest.mark.parametrize("share", [0.3, 0.75])
def test_what_wanda_takes_is_its_formula_on_what_transformers_maps_read(folder, share):
    """Block after block, by hooks on the linear maps of transformers, each pruned before the next is heard."""
    model = load_model(folder)
    zero_least_used(model, IDS, share)
    kind = transformers.AutoModelForMaskedLM if folder.name == "bert" else transformers.AutoModelForCausalLM
    other = kind.from_pretrained(folder).eval()
    body = {"llama": lambda: other.model.layers, "gpt2": lambda: other.transformer.h,
            "bert": lambda: other.bert.encoder.layer}[folder.name]()  # fmt: skip
    for layer in body:
        read: dict = {}
        maps = [m for m in layer.modules() if isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D"]
        hooks = [m.register_forward_pre_hook(lambda m, given, read=read: read.update({m: given[0]})) for m in maps]
        other(IDS)
        for hook in hooks:
            hook.remove()
        for part in maps:
            weight = part.weight.T if type(part).__name__ == "Conv1D" else part.weight  # [outputs, inputs]
            worth = weight.abs() * read[part].flatten(0, 1).norm(dim=0)
            for row, each in zip(weight, worth, strict=True):
                row[each.argsort()[: round(share * len(each))]] = 0.0
    assert close(logits(model), other(IDS).logits)
    assert sparsity(model) == pytest.approx(share, abs=0.02)
    plain = load_model(folder)
    zero_smallest(plain, share)
    assert not close(logits(plain), logits(model))  # the control


def test_zeros_that_are_held_stay_and_others_move(folder):
    model = load_model(folder).train().requires_grad_(True)
    zero_smallest(model, 0.4)
    hold_zeros(model)
    before = [part.weight.detach().clone() for part in maps_of(model)]
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(one_document(IDS), OneDocument()).square().mean().backward()
        optimizer.step()
    assert sparsity(model) == pytest.approx(0.4, abs=2e-3)
    for part, was in zip(maps_of(model), before, strict=True):
        assert bool((part.weight[was == 0] == 0).all()) and bool((part.weight != was).any())
