"""Task heads tuned as transformers tunes them: its tokenizer, its model and its loss over the rows of our batches; the
published folder answers as the tuned model did, and as transformers' model of the folder does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from fledge.cli.main import main
from fledge.data.task_config import TaskDataConfig
from fledge.data.task_framing import Reader
from fledge.data.task_rows import read_examples
from fledge.engine.config import PredictConfig
from fledge.engine.predict import TaskKind, asked, batches_of, kind_of, reader_of
from fledge.errors import ConfigError, DataError, Interrupted
from fledge.lineage import verify
from fledge.log import read_log
from fledge.model.folder import load_model, save_model
from fledge.recipes.config import BaseModelConfig
from fledge.recipes.finetune import finetune, kind_from, rows_of, tasked_model
from fledge.recipes.finetune_config import FinetuneConfig
from fledge.text.tokenizer import Tokenizer
from fledge.train.config import RunConfig, TrainConfig
from fledge.tune.config import TuneConfig
from tests.data.corrupted import NAMES, story, wordpiece
from tests.parity.reference import randomised

STEPS = 8
TRAIN = TrainConfig(steps=STEPS, rows=6, learning_rate=3e-3, learning_rate_floor=1.0, weight_decay=0.0, clip_norm=0.0,
                    beta2=0.999, seed=3, eval_every_steps=0, threads=1)  # fmt: skip
CLASSES = {
    "sequence": "AutoModelForSequenceClassification",
    "several": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "span": "AutoModelForQuestionAnswering",
    "choice": "AutoModelForMultipleChoice",
}


def sentence(number: int) -> str:
    return story(number, 1 + number % 3)


def rows(task: str) -> list[dict]:
    found: list[dict] = []
    for n in range(30):
        text = sentence(n)
        name = text.split()[0]
        if task == "sequence":
            found.append({"sentence1": text, "sentence2": sentence(n + 100), "label": ["red", "blue", "green"][n % 3]})
        elif task == "several":
            found.append({"text": text, "labels": [w for w in ("Anna", "Ben", "an") if w in text]})
        elif task == "regression":
            found.append({"text": text, "score": len(text) / 40})
        elif task == "token":
            words = text.replace(".", " .").split()
            found.append({"tokens": words, "tags": ["B-PER" if w in NAMES else "O" for w in words]})
        elif task == "span":
            start = text.index(name)
            answers = {"text": [name], "answer_start": [start]} if n % 5 else {"text": [], "answer_start": []}
            found.append({"id": str(n), "question": "who?", "context": text, "answers": answers})
        else:
            choices = ["the dog", "an old bicycle", "why"]
            choices = choices[n % 3 :] + choices[: n % 3]
            found.append({"question": text, "choices": choices, "answer": choices.index("why")})
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    tokenizer = wordpiece()
    config = transformers.BertConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(3)
    path, theirs = path / "ours", path / "theirs"
    randomised(transformers.BertForPreTraining(config), 0.2).eval().save_pretrained(theirs)
    save_model(load_model(theirs), path, tokenizer)
    return path


def config_of(base: Path, folder: Path, task: str, **more) -> FinetuneConfig:
    path = folder / f"{task}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(task)))
    data = TaskDataConfig(path=str(path), label="labels" if task == "several" else "")
    known = "sequence" if task == "several" else task
    run = RunConfig(str(folder / "run"))
    return replace(FinetuneConfig(BaseModelConfig(str(base)), data, known, train=TRAIN, run=run), **more)


def their_inputs(tokenizer, task: str, chosen: list[dict], labels: tuple[str, ...], longest: int = 64) -> dict:
    """transformers' batch of these rows, by its own tokenizer."""
    if task in ("sequence", "several", "regression"):
        pair = [row["sentence2"] for row in chosen] if task == "sequence" else None
        texts = [row.get("text", row.get("sentence1")) for row in chosen]
        found = tokenizer(texts, pair, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        if task == "several":
            return found | {"labels": torch.tensor([[float(n in r["labels"]) for n in labels] for r in chosen])}
        if task == "regression":
            return found | {"labels": torch.tensor([row["score"] for row in chosen])}
        return found | {"labels": torch.tensor([labels.index(row["label"]) for row in chosen])}
    if task == "token":
        found = tokenizer([r["tokens"] for r in chosen], is_split_into_words=True, padding=True, return_tensors="pt")
        targets = torch.full(found["input_ids"].shape, -100)
        for b, row in enumerate(chosen):
            seen: set[int] = set()
            for t, word in enumerate(found.word_ids(b)):
                if word is not None and word not in seen:
                    targets[b, t] = labels.index(row["tags"][word])
                    seen.add(word)
        return dict(found) | {"labels": targets}
    if task == "choice":
        flat = [(row["question"], choice) for row in chosen for choice in row["choices"]]
        found = tokenizer([a for a, _ in flat], [b for _, b in flat], padding=True, truncation=True, max_length=longest,
                          return_tensors="pt")  # fmt: skip
        grouped = {key: value.reshape(len(chosen), 3, -1) for key, value in found.items()}
        return grouped | {"labels": torch.tensor([row["answer"] for row in chosen])}
    questions, contexts = [row["question"] for row in chosen], [row["context"] for row in chosen]
    found = tokenizer(questions, contexts, padding=True, return_tensors="pt", return_offsets_mapping=True)
    offsets = found.pop("offset_mapping").tolist()
    starts, ends = [], []
    for b, row in enumerate(chosen):
        inside = [t for t, s in enumerate(found.sequence_ids(b)) if s == 1]
        if not row["answers"]["text"]:
            starts, ends = [*starts, 0], [*ends, 0]
            continue
        begin = row["answers"]["answer_start"][0]
        end = begin + len(row["answers"]["text"][0])
        starts.append(next(t for t in inside if offsets[b][t][0] <= begin < offsets[b][t][1]))
        ends.append(next(t for t in inside if offsets[b][t][0] < end <= offsets[b][t][1]))
    return dict(found) | {"start_positions": torch.tensor(starts), "end_positions": torch.tensor(ends)}


def their_losses(config: FinetuneConfig, task: str, folder: Path) -> list[float]:
    """Losses of a plain loop over transformers' model, from our initial weights, over the rows of our batches."""
    training, held = rows_of(config)
    kind = kind_from(config, training, held)
    model = tasked_model(load_model(config.model.path), kind, config.train.seed)
    save_model(model, folder, wordpiece())
    theirs = getattr(transformers, CLASSES[task]).from_pretrained(folder).eval()  # no dropout
    tokenizer = transformers.AutoTokenizer.from_pretrained(config.model.path)
    reader = reader_of(model.config, wordpiece(), 0, kind)
    source = batches_of(reader, kind, training, rows=config.train.rows, seed=config.train.seed)
    by_place = {f"{config.data.path}, line {n}": row for n, row in enumerate(rows(task), 1)}
    optimizer = torch.optim.AdamW(theirs.parameters(), config.train.learning_rate, (0.9, 0.999), 1e-8, weight_decay=0)
    losses = []
    for step in range(STEPS):
        names = source.batch(step).sample_ids[:: 3 if task == "choice" else 1]
        inputs = their_inputs(tokenizer, task, [by_place[name] for name in names], kind.names)
        out = theirs(**inputs)
        loss = span_loss(out, inputs) if task == "span" else out.loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def span_loss(out, inputs: dict) -> torch.Tensor:
    """transformers' loss of the two ends, but over the row's tokens alone: its own counts padding as places too."""
    there = inputs["attention_mask"].bool()
    start, end = (logits.masked_fill(~there, -torch.inf) for logits in (out.start_logits, out.end_logits))
    nats = torch.nn.functional.cross_entropy
    return (nats(start, inputs["start_positions"]) + nats(end, inputs["end_positions"])) / 2


@pytest.mark.parametrize("task", CLASSES)
def test_losses_step_by_step_and_answers_are_those_of_transformers(base, tmp_path, task):
    config = config_of(base, tmp_path, task)
    result = finetune(config)
    log = [event for event in read_log(tmp_path / "run" / "log.jsonl") if event["kind"] == "step"]
    ours, theirs = [event["loss"] for event in log], their_losses(config, task, tmp_path / "theirs")
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert abs(ours[-1] - ours[0]) > 1e-3  # the control: training moves the loss by more
    # the published folder, read by transformers, answers as ours does
    folder = tmp_path / "run" / "model"
    model = getattr(transformers, CLASSES[task]).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    _, held = rows_of(config)
    kind = kind_of(load_model(folder).config)
    by_place = {f"{config.data.path}, line {n}": row for n, row in enumerate(rows(task), 1)}
    chosen = [by_place[example.place] for example in held]
    with torch.no_grad():
        out = model(**their_inputs(tokenizer, task, chosen, kind.names))
    batches = batches_of(reader_of(model_config(folder), wordpiece(), 0, kind), kind, held, rows=3 * len(held))
    batch = batches.in_order(0, len(held))
    with torch.no_grad():
        logits = load_model(folder).eval().head(kind.head, batch.tokens, batch.layout)
    wanted = torch.stack([out.start_logits, out.end_logits], -1) if task == "span" else out.logits
    there = batch.tokens.doc >= 0 if task in ("token", "span") else ...
    got = logits.reshape(wanted.shape) if task == "choice" else logits
    assert torch.allclose(got[there], wanted[there], atol=1e-5)
    scores = result["scores"]
    assert all(0 <= score["n"] <= 100 for score in scores.values()) and scores
    assert len((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()) == len(held)


def model_config(folder: Path):
    return load_model(folder).config


@pytest.mark.parametrize("task", ["sequence", "token", "choice"])
def test_parts_of_a_batch_give_the_whole_ones_losses(base, tmp_path, task):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    weighing = "balanced" if task != "choice" else "none"
    whole = config_of(base, tmp_path / "a", task, class_weights=weighing)
    parts = config_of(base, tmp_path / "b", task, class_weights=weighing, train=replace(TRAIN, micro_rows=3))
    for config in (whole, parts):
        finetune(config)
    losses = [[e["loss"] for e in read_log(tmp_path / x / "run" / "log.jsonl") if e["kind"] == "step"] for x in "ab"]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_balanced_classes_count_alike_as_torch_weighs_them(base, tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [{"text": sentence(n), "label": "rare" if n % 10 == 0 else "usual"} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    config = config_of(base, tmp_path, "sequence", class_weights="balanced")
    config = replace(config, data=TaskDataConfig(path=str(path), labels=("rare", "usual")))
    finetune(config)
    training, held = rows_of(config)
    kind = kind_from(config, training, held)
    first = [e for e in read_log(tmp_path / "run" / "log.jsonl") if e["kind"] == "step"][0]
    model = tasked_model(load_model(base), kind, TRAIN.seed)
    counts = torch.tensor([sum(e.answer == name for e in training) for name in kind.names])
    weights = len(training) / (2 * counts)
    answers = torch.tensor([kind.names.index(e.answer) for e in training])
    source = batches_of(reader_of(model.config, wordpiece(), 0, kind), kind, training, rows=6, seed=3, targets=answers)
    batch = source.batch(0)
    logits = model.head("sequence", batch.tokens, batch.layout)
    wanted = torch.nn.functional.cross_entropy(logits, batch.answers, weights)
    assert first["loss"] == pytest.approx(wanted.item(), abs=1e-6)
    unweighed = torch.nn.functional.cross_entropy(logits, batch.answers)
    assert abs(unweighed.item() - wanted.item()) > 1e-4  # the control


def test_a_stopped_run_goes_on_to_the_same_bits_and_a_finished_one_is_not_repeated(base, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    straight = finetune(config_of(base, tmp_path / "a", "sequence"))
    config = config_of(base, tmp_path / "b", "sequence")
    with pytest.raises(Interrupted):
        finetune(replace(config, train=replace(TRAIN, stop_after_steps=3)))
    stopped = finetune(config)
    files = [Path(r["model"]) / "model.safetensors" for r in (straight, stopped)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert finetune(config) == stopped
    assert verify(tmp_path / "b" / "run" / "model")["kind"] == "model"


def test_fewer_steps_than_are_done_are_refused_and_nothing_is_touched(base, tmp_path):
    config = config_of(base, tmp_path, "sequence")
    with pytest.raises(Interrupted):
        finetune(replace(config, train=replace(TRAIN, stop_after_steps=4)))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="train.steps: expected at least the 4 steps that .*run has done, got 3"):
        finetune(replace(config, train=replace(TRAIN, steps=3)))
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_a_run_folder_without_a_possible_name_is_refused():
    with pytest.raises(ConfigError, match="run.dir: expected a path without NUL"):
        RunConfig("a\0b")


def test_a_word_that_looks_like_a_comment_is_a_word(tmp_path):
    lines = "# a comment of a file\nPrice NN O\n# # B-SIGN\n5 CD I-SIGN\n\n# id 7 of it\n# # O\nfan NN O\n"
    (tmp_path / "a.conll").write_text(lines)
    found = read_examples(tmp_path / "a.conll", "token", TaskDataConfig())
    assert [(one.words, one.tags) for one in found] == [
        (("Price", "#", "5"), ("O", "B-SIGN", "I-SIGN")), (("#", "fan"), ("O", "O")),
    ]  # fmt: skip


def test_one_label_that_holds_or_not_is_a_share_and_one_label_of_all_rows_is_refused(base, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"text": sentence(n), "label": ["spam"] if n % 2 else []}) + "\n" for n in range(30))
    )
    config = config_of(base, tmp_path, "several")
    data = TaskDataConfig(path=str(path), labels=("spam",))
    result = finetune(replace(config, data=data))
    assert set(result["scores"]) == {"accuracy", "macro_f1", "mcc"}
    kind = kind_of(load_model(tmp_path / "run" / "model").config)
    assert (kind.task, kind.names, kind.several) == ("sequence", ("spam",), True)
    path.write_text("".join(json.dumps({"text": sentence(n), "label": "spam"}) + "\n" for n in range(30)))
    with pytest.raises(DataError, match="labels: expected at least two, got spam"):
        finetune(replace(config, data=data, run=RunConfig(str(tmp_path / "other"))))


def test_lists_of_labels_among_the_held_out_rows_alone_make_them_several(base, tmp_path):
    for name, label in (("train", lambda n: "ab"[n % 2]), ("val", lambda n: ["a", "b"][: n % 3])):
        rows_here = [json.dumps({"text": sentence(n), "label": label(n)}) for n in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows_here))
    config = config_of(base, tmp_path, "several")
    data = TaskDataConfig(path=str(tmp_path / "train.jsonl"), val=str(tmp_path / "val.jsonl"))
    assert finetune(replace(config, data=data))["scores"]["accuracy"]["n"] == 24


def test_frozen_parts_stay_and_the_head_learns(base, tmp_path):
    tune = TuneConfig(freeze=("bert",))
    result = finetune(config_of(base, tmp_path, "sequence", tune=tune))
    before, after = load_model(base), load_model(result["model"])
    assert torch.equal(before.embedding.weight, after.embedding.weight)
    config = config_of(base, tmp_path, "sequence")
    fresh = tasked_model(load_model(base), kind_from(config, *rows_of(config)), TRAIN.seed)
    assert not torch.equal(fresh.heads["sequence"].out.weight, after.heads["sequence"].out.weight)


def test_long_contexts_are_read_in_windows_that_find_an_answer_anywhere(base, tmp_path):
    """Every character of a long context is in a window, and an answer's tokens spell the answer."""
    context = " ".join(story(n, 2) for n in range(6))
    row = {"question": "who ?", "context": context, "answers": {"text": ["letter"], "answer_start": [0]}}
    row["answers"]["answer_start"] = [context.index("letter")]
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps(row))
    config = replace(config_of(base, tmp_path, "span"), data=TaskDataConfig(path=str(path)))
    (example,) = read_examples(path, "span", config.data)
    kind = kind_from(config, [example], [])
    batches = batches_of(reader_of(load_model(base).config, wordpiece(), 0, kind), kind, [example], stride=16)
    assert len(batches.windows) >= 3
    covered = set()
    for window in batches.windows:
        assert len(window.framed.ids) <= 64
        for place, (start, end) in enumerate(window.offsets.tolist()):
            covered.update(range(start, end))
            token = wordpiece().token_of(window.framed.ids[window.first + place]).removeprefix("##")
            assert context[start:end].lower() == token
    assert {n for n, c in enumerate(context) if not c.isspace()} <= covered
    holding = [w for w in batches.windows if w.start]
    assert holding
    for window in holding:
        spans = window.offsets[window.start - window.first], window.offsets[window.end - window.first]
        assert context[spans[0][0] : spans[1][1]] == "letter"


@pytest.mark.parametrize(("stride", "shared"), [(0, 0), (16, 16), (28, 28), (500, 29)])
def test_windows_share_the_stride_as_transformers_windows_do(base, tmp_path, stride, shared):
    context = " ".join(story(n, 2) for n in range(6))
    row = {"question": "who ?", "context": context, "answers": {"text": [], "answer_start": []}}
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps(row))
    config = replace(config_of(base, tmp_path, "span"), data=TaskDataConfig(path=str(path)))
    (example,) = read_examples(path, "span", config.data)
    kind = kind_from(config, [example], [])
    reader = reader_of(load_model(base).config, wordpiece(), 0, kind)
    windows = batches_of(reader, kind, [example], stride=stride).windows
    theirs = transformers.AutoTokenizer.from_pretrained(base)(
        row["question"], context, truncation="only_second", max_length=64, stride=shared, return_overflowing_tokens=True
    )
    assert [list(window.framed.ids) for window in windows] == theirs["input_ids"] and len(windows) >= 2


def test_the_verbs_train_and_answer(base, tmp_path, capfd):
    config = config_of(base, tmp_path, "sequence")
    words = ["finetune", f"model.path={base}", f"data.path={config.data.path}", "train.steps=4", "train.rows=4",
             f"run.dir={tmp_path / 'verb'}", "--json"]  # fmt: skip
    assert main(words) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert set(result["scores"]) == {"accuracy", "macro_f1", "mcc"}
    assert main(["predict", str(tmp_path / "verb"), sentence(1), "--pair", sentence(2), "--json"]) == 0
    (answer,) = json.loads(capfd.readouterr().out.splitlines()[-1])["answers"]
    assert answer["label"] in ("red", "blue", "green") and sum(answer["probabilities"].values()) == pytest.approx(1)
    assert main(["predict", str(tmp_path / "verb"), "--file", config.data.path, "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out.splitlines()[-1])["answers"]) == 30
    assert main(["predict", str(base), "text"]) != 0
    assert "fledge finetune" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "task", "message"),
    [
        ("", "sequence", "expected labelled rows, found none"),
        ('{"text": "a", "label": "b"}\n{"text": 3, "label": "b"}', "sequence", "line 2, text: expected text, got int"),
        ('{"text": "a", "label": "b"}\n{"text": "a"}', "sequence", "line 2: expected one of label"),
        ('{"text": "a", "label": "b"}\n{"te', "sequence", "line 2: expected JSON"),
        ('{"text": "a", "label": "b"}', "regression", "expected a finite number, got 'b'"),
        ('{"tokens": ["a"], "tags": ["O", "O"]}', "token", "expected a tag for each of 1 words, got 2"),
        ("word\n", "token", "line 1: expected a word and its tag"),
        (
            '{"question": "q", "context": "abc", "answers": {"text": ["c"], "answer_start": [1]}}',
            "span",
            "at character 1",
        ),
        ('{"question": "q", "context": "abc", "answers": "c"}', "span", "expected text and answer_start of each"),
        (
            '{"question": "q", "context": "abc", "answers": {"text": ["c"], "answer_start": [-1]}}',
            "span",
            "at character -1",
        ),
        ('{"question": "q", "choices": ["a", "b"], "answer": "²"}', "choice", "expected one of 2 choices"),
        ('{"question": "q", "choices": ["a", "b"], "answer": "ß"}', "choice", "expected one of 2 choices"),
        ('{"question": "q", "choices": ["a"], "answer": 0}', "choice", "expected at least two texts"),
        ('{"question": "q", "choices": ["a", "b"], "answer": 2}', "choice", "expected one of 2 choices"),
        ("text,label\na,b\nd", "sequence", "line 3: expected 2 columns"),
        ("text,label\nhello, world,pos", "sequence", "line 2: expected 2 columns as in the first line, got 3; quote"),
        ("text,label\na,b\nc,", "sequence", "line 3, label: expected a label, got none"),
        ('{"text": "a", "label": ["b", null]}', "sequence", "line 1, label: expected a label, got none"),
        ("word\t\n", "token", "line 1: expected a word and its tag, got an empty tag"),
        ('{"tokens": ["a", "b"], "tags": ["O", null]}', "token", "expected a tag for each word, got none for 'b'"),
        ('{"question": "q", "context": "abc", "answers": ["c"]}', "span", "expected text and answer_start of each"),
        ('{"question": "q", "context": "abc", "answers": {"value": "c"}}', "span", "expected text and answer_start"),
    ],
)
def test_wrong_rows_are_named(tmp_path, text, task, message):
    path = tmp_path / "rows"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_examples(path, task, TaskDataConfig())


def test_settings_that_fit_no_task_are_refused(base, tmp_path):
    with pytest.raises(ConfigError, match="class_weights: expected none for the task span"):
        finetune(config_of(base, tmp_path, "span", class_weights="balanced"))
    with pytest.raises(ConfigError, match="train.rows: expected a multiple of the 3 choices"):
        finetune(config_of(base, tmp_path, "choice", train=replace(TRAIN, rows=4)))
    with pytest.raises(ConfigError, match="train.micro_rows: expected multiples of the 3 choices"):
        finetune(config_of(base, tmp_path, "choice", train=replace(TRAIN, micro_rows=2)))
    config = config_of(base, tmp_path, "sequence")
    with pytest.raises(DataError, match="expected one of red, blue, got 'green'"):
        finetune(replace(config, data=replace(config.data, labels=("red", "blue"))))
    assert Tokenizer.load(base).vocab_size == wordpiece().vocab_size


def test_words_are_tagged_whatever_tags_their_rows_have(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"tokens": ["the", "old", "cat"], "tags": ["O", "B-NEW", "O"]}))
    kind = TaskKind("token", ("O", "B-PER"))
    examples = asked(PredictConfig("m", file=tmp_path / "rows.jsonl"), kind)
    batch = batches_of(Reader(wordpiece(), 32), kind, examples).in_order(0, 1)
    assert examples[0].words == ("the", "old", "cat") and not batch.weight.any()
