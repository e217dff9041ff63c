"""Text-to-text tuning as transformers does it: its tokenizer, its T5 and BART, a plain loop; and what the published
folder writes is what evaluation, `predict` and `generate` say, and transformers' own greedy search."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer as Tokens
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from fledge import device
from fledge.cli.main import main
from fledge.data.task_config import TaskDataConfig
from fledge.data.task_rows import PairExample
from fledge.data.text_pair_batches import TextPairBatches
from fledge.errors import ConfigError, DataError, Interrupted
from fledge.log import read_log
from fledge.model.folder import load_model, save_model
from fledge.recipes.config import BaseModelConfig
from fledge.recipes.finetune import finetune
from fledge.recipes.finetune_config import FinetuneConfig, WritingConfig
from fledge.recipes.labelled import rows_of
from fledge.text.sides import Sides
from fledge.text.tokenizer import Tokenizer
from fledge.train.config import RunConfig, TrainConfig
from fledge.tune.config import TuneConfig
from tests.data.corrupted import THINGS, VERBS, story
from tests.parity.reference import randomised

STEPS, SOURCE, TARGET = 30, 24, 16
PREFIX, RATE = "turn: ", 0.01
TRAIN = TrainConfig(steps=STEPS, rows=5, learning_rate=RATE, learning_rate_floor=1.0, weight_decay=0.0, clip_norm=0.0,
                    beta2=0.999, seed=3, eval_every_steps=0, threads=1)  # fmt: skip
FRAMES = {"t5": "$A </s>", "bart": "<s> $A </s>"}
CLASSES = {"t5": transformers.T5ForConditionalGeneration, "bart": transformers.BartForConditionalGeneration}


@pytest.fixture(scope="module", autouse=True)
def unmeasured():
    """Measuring the machine takes longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "matmul_peak", lambda *_, **__: 1e10)
        yield


def pair(n: int) -> dict[str, str]:
    """A sentence, and its last words first; some are longer than a row."""
    text = story(n, 1 if n % 7 else 3)
    words = text.rstrip(".").split()
    return {"source": text, "target": " ".join([*words[2:], *words[:2]])}


def tokenizer_folder(folder: Path, kind: str) -> None:
    """A tokenizer made by the library of Hugging Face alone, with the frame of the family."""
    made = Tokens(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [PREFIX, *(story(n, 3) for n in range(40)), *VERBS, *THINGS],
        trainers.BpeTrainer(vocab_size=360, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    ids = [(name, made.token_to_id(name)) for name in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(single=FRAMES[kind], special_tokens=ids)
    saved = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>" if kind == "bart" else None, eos_token="</s>", pad_token="<pad>"
    )
    saved.save_pretrained(folder)


def their_config(kind: str):
    common = {"vocab_size": 360, "pad_token_id": 1, "eos_token_id": 2}
    if kind == "t5":
        return transformers.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, n_positions=64,
                                     decoder_start_token_id=1, dropout_rate=0.0, **common)  # fmt: skip
    return transformers.BartConfig(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                                   decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, bos_token_id=0,
                                   max_position_embeddings=64, decoder_start_token_id=2, dropout=0.0,
                                   forced_eos_token_id=None, **common)  # fmt: skip


@pytest.fixture(scope="module", params=FRAMES)
def place(request, tmp_path_factory) -> tuple[str, Path]:
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    torch.manual_seed(3)
    randomised(CLASSES[kind](their_config(kind)), 0.2).eval().save_pretrained(folder / "theirs")
    tokenizer_folder(folder / "theirs", kind)
    save_model(load_model(folder / "theirs"), folder / "base", Tokenizer.load(folder / "theirs"))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair(n)) + "\n" for n in range(44)))
    return kind, folder


def config_of(folder: Path, run: Path, **more) -> FinetuneConfig:
    data = TaskDataConfig(path=str(folder / "pairs.jsonl"), prefix=PREFIX, max_tokens=SOURCE, max_target_tokens=TARGET)
    writing = WritingConfig(max_tokens=20, metrics=(), before=True)
    plain = FinetuneConfig(BaseModelConfig(str(folder / "base")), data, "text2text", train=TRAIN, writing=writing)
    return replace(plain, run=RunConfig(str(run)), **more)


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory):
    kind, folder = place
    run = tmp_path_factory.mktemp("run")
    return kind, folder, run, finetune(config_of(folder, run))


def their_losses(kind: str, folder: Path, target_tokens: int = TARGET) -> list[float]:
    """A plain loop over transformers' model and tokenizer, the rows in the order of our batches."""
    config = config_of(folder, folder / "unused")
    training = [one for one in rows_of(config)[0] if isinstance(one, PairExample)]
    sides = Sides(Tokenizer.load(folder / "base"), SOURCE, TARGET, PREFIX)
    ours = TextPairBatches(sides, training, 0, TRAIN.rows, TRAIN.seed)
    model = CLASSES[kind].from_pretrained(folder / "theirs").eval()  # no dropout
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "theirs")
    optimizer = torch.optim.AdamW(model.parameters(), TRAIN.learning_rate, (0.9, 0.999), 1e-8, weight_decay=0)
    losses = []
    for step in range(STEPS):
        rows = [pair(int(name.rpartition(" ")[2]) - 1) for name in ours.batch(step).sample_ids]
        inputs = tokenizer([PREFIX + row["source"] for row in rows], padding=True, truncation=True, max_length=SOURCE,
                           return_tensors="pt")  # fmt: skip
        labels = tokenizer(text_target=[row["target"] for row in rows], padding=True, truncation=True,
                           max_length=target_tokens, return_tensors="pt")["input_ids"]  # fmt: skip
        labels[labels == tokenizer.pad_token_id] = -100
        out = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(out.loss.item())
    return losses


def test_losses_step_by_step_are_those_of_transformers(trained):
    kind, folder, run, _ = trained
    ours = [event["loss"] for event in read_log(run / "log.jsonl") if event["kind"] == "step"]
    theirs = their_losses(kind, folder)
    assert len(ours) == STEPS and ours == pytest.approx(theirs, abs=1e-4)
    assert ours[-1] < ours[0] - 0.5
    assert their_losses(kind, folder, TARGET - 4) != pytest.approx(ours, abs=1e-2)  # the control: other cut targets


def their_texts(kind: str, folder: Path, sources: list[str], beams: int = 1) -> list[str]:
    model = CLASSES[kind].from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for text in sources:
        inputs = tokenizer(PREFIX + text, truncation=True, max_length=SOURCE, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        out = model.generate(**inputs, max_new_tokens=20, do_sample=False, num_beams=beams, forced_eos_token_id=None)
        found.append(tokenizer.decode(out[0], skip_special_tokens=True))
    return found


def predictions(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def test_evaluation_predict_generate_and_transformers_write_the_same_texts(trained, tmp_path, capsys):
    kind, folder, run, result = trained
    told = predictions(run)
    written, sources = [row["target"] for row in told], [row["source"] for row in told]
    _, held = rows_of(config_of(folder, run))
    assert [(one.source, one.target) for one in held] == [(row["source"], row["reference"]) for row in told]
    assert their_texts(kind, run / "model", sources) == written
    assert their_texts(kind, folder / "theirs", sources) != written  # the control: before tuning it wrote others
    (tmp_path / "sources.jsonl").write_text("".join(json.dumps({"source": text}) + "\n" for text in sources))
    words = ["--prefix", PREFIX, "--max_tokens", str(SOURCE), "--answer_tokens", "20", "--threads", "1"]
    capsys.readouterr()
    assert main(["predict", str(run), "--file", str(tmp_path / "sources.jsonl"), *words]) == 0
    assert capsys.readouterr().out.splitlines() == written
    for row in [row for row in told if len(row["source"]) < 50][:2]:
        short = ["--max-tokens", "20", "--temperature", "0", "--threads", "1"]
        assert main(["generate", str(run), "--prompt", PREFIX + row["source"], *short]) == 0
        assert capsys.readouterr().out == row["target"] + "\n"
        assert main(["predict", str(run), row["source"], *words]) == 0
        assert capsys.readouterr().out == row["target"] + "\n"
    exact = sum(row["target"].strip() == row["reference"].strip() for row in told) / len(told)
    assert result["scores"]["exact"]["value"] == exact and result["scores"]["exact"]["n"] == len(told)
    assert result["scores_before"]["exact"]["n"] == len(told)


def test_beams_write_what_transformers_beams_write(trained, tmp_path, capsys):
    kind, folder, run, _ = trained
    sources = [row["source"] for row in predictions(run)]
    (tmp_path / "sources.tsv").write_text("source\n" + "\n".join(sources) + "\n")
    words = ["--prefix", PREFIX, "--max_tokens", str(SOURCE), "--answer_tokens", "20", "--beams", "3"]
    capsys.readouterr()
    assert main(["predict", str(run), "--file", str(tmp_path / "sources.tsv"), *words]) == 0
    assert capsys.readouterr().out.splitlines() == their_texts(kind, run / "model", sources, beams=3)


def test_the_alignment_of_source_and_target_is_a_page_over_what_training_reads(trained, tmp_path, capsys):
    kind, folder, run, _ = trained
    row = predictions(run)[1]
    page = tmp_path / "page.html"
    words = ["attention", str(run), PREFIX + row["source"], "--target", row["reference"], "--out", str(page)]
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    tokenizer = Tokenizer.load(folder / "base")
    sides = Sides(tokenizer, 64, 64, PREFIX)
    example = PairExample("", row["source"], row["reference"])
    batch = TextPairBatches(sides, [example], {"t5": 1, "bart": 2}[kind], 1, 0).batch(0)
    assert (
        len(told["source_tokens"]) == batch.source[0].ids.shape[1] and len(told["tokens"]) == batch.tokens.ids.shape[1]
    )
    assert all(heads for heads in told["entropy"]["cross"]) and page.read_text().startswith("<!doctype html>")
    model = CLASSES[kind].from_pretrained(run / "model", attn_implementation="eager").eval()
    with torch.no_grad():
        out = model(input_ids=batch.source[0].ids, decoder_input_ids=batch.tokens.ids, output_attentions=True)
    shares = torch.stack(out.cross_attentions)[:, 0]
    bits = -(shares * shares.clamp_min(1e-30).log2()).sum(-1).mean(-1)
    assert torch.allclose(torch.tensor(told["entropy"]["cross"]), bits, atol=2e-3)


def test_a_stopped_run_ends_in_the_same_bits(place, tmp_path):
    _, folder = place
    short = replace(TRAIN, steps=6)
    straight = config_of(folder, tmp_path / "straight", train=short)
    result = finetune(straight)
    stopped = config_of(folder, tmp_path / "stopped", train=short)
    with pytest.raises(Interrupted):
        finetune(replace(stopped, train=replace(short, stop_after_steps=2)))
    finetune(stopped)
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("straight", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert finetune(straight) == result  # a finished run is not repeated


def test_parts_of_a_batch_give_the_whole_ones_losses(trained, tmp_path):
    _, folder, run, _ = trained
    finetune(config_of(folder, tmp_path, train=replace(TRAIN, micro_rows=1, steps=4)))
    losses = [[event["loss"] for event in read_log(one / "log.jsonl") if event["kind"] == "step"][:4]
              for one in (run, tmp_path)]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_an_adapter_learns_and_its_folder_writes(place, tmp_path):
    _, folder = place
    lora = TuneConfig(method="lora", rank=4, targets=("all-linear",))
    result = finetune(config_of(folder, tmp_path, tune=lora, train=replace(TRAIN, steps=10)))
    assert (tmp_path / "model" / "adapter_config.json").is_file()
    losses = [event["loss"] for event in read_log(tmp_path / "log.jsonl") if event["kind"] == "step"]
    assert losses[-1] < losses[0] and result["scores"]["exact"]["n"] == len(predictions(tmp_path))


def test_a_preview_marks_every_target_token_and_no_source(place, capsys):
    _, folder = place
    words = [str(folder / "pairs.jsonl"), f"model.path={folder / 'base'}", f"data.prefix={PREFIX}", "train.rows=5"]
    assert main(["data", "preview", *words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["verb"] == "finetune" and result["counts"]["trained_share"] == 1.0
    for row in result["rows"]:
        source, target = row["parts"]["source"]["documents"][0], row["parts"]["target"]["documents"][0]
        assert "".join(source["pieces"]).removeprefix("<s>").startswith(PREFIX) and not any(source["weights"])
        assert target["weights"] == [0.0] + [1.0] * (len(target["ids"]) - 1) and target["pieces"][-1] == "</s>"


@pytest.mark.parametrize("lines, message", [
    (['{"source": "a", "target": "b"}', '{"source": "a"}'], "line 2: expected one of target, .*set data.label="),
    (['{"source": "a", "target": "b"}', '{"source": "a", "target": " "}'], "line 2: expected two texts, got an empty"),
    (['{"source": 3, "target": "b"}'], "line 1, source: expected text, got int"),
])  # fmt: skip
def test_wrong_rows_are_told_by_file_and_line(place, tmp_path, lines, message):
    _, folder = place
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    config = config_of(folder, tmp_path)
    with pytest.raises(DataError, match=message):
        finetune(replace(config, data=replace(config.data, path=str(tmp_path / "rows.jsonl"))))


def test_what_cannot_be_is_refused(place, tmp_path, monkeypatch):
    _, folder = place
    config = config_of(folder, tmp_path)
    with pytest.raises(ConfigError, match="data.max_tokens: expected at most the context of 64, got 65"):
        finetune(replace(config, data=replace(config.data, max_tokens=65)))
    with pytest.raises(ConfigError, match="class_weights: expected none"):
        finetune(replace(config, class_weights="balanced"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"metrics: bleu needs sacrebleu.*pip install 'fledge\[eval\]'"):
        finetune(replace(config, writing=WritingConfig()))
    assert not (tmp_path / "log.jsonl").exists()
