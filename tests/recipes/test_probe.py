"""`fledge probe`: scikit-learn's regression on transformers' states, as a folder that predict and serve open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fledge.data.task_config import TaskDataConfig
from fledge.engine.config import PredictConfig
from fledge.engine.encoder import load_encoder
from fledge.engine.predict import predict
from fledge.errors import ConfigError, DataError
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import load_model, save_model
from fledge.model.init import initialise
from fledge.model.sentence import SentenceConfig, SentenceModel, save_sentence_model
from fledge.model.transformer import build
from fledge.recipes.embed_config import ProbeConfig
from fledge.recipes.kept_vectors import kept_vectors
from fledge.recipes.probe import probe
from fledge.text.tokenizer import byte_level
from tests.sentences import minilm_folder

WORDS = {
    "good": ("lovely", "superb", "warm", "clever", "moving", "bright"),
    "bad": ("dull", "awful", "tedious", "clumsy", "lifeless", "silly"),
    "thing": ("table", "carpet", "window", "engine", "bottle", "ladder"),
}
FRAMES = ("a {} one", "it is {}", "{} and nothing else", "we saw a {} thing", "so {}", "how {} it was")


def rows_file(path: Path, labels: tuple[str, ...], frames: tuple[str, ...] = FRAMES) -> list[tuple[str, str]]:
    rows = [(frame.format(word), label) for frame in frames for label in labels for word in WORDS[label]]
    path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
    return rows


@torch.no_grad()
def states(folder: Path, texts: list[str]) -> np.ndarray:
    """Mean of the last states, by transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"][..., None].float()
    found = transformers.AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state
    return ((found * mask).sum(1) / mask.sum(1)).double().numpy()


def config(tmp_path: Path, labels: tuple[str, ...], **fields: Any) -> ProbeConfig:
    rows_file(tmp_path / "train.jsonl", labels)
    rows_file(tmp_path / "valid.jsonl", labels, ("quite a {} picture", "{}"))
    data = TaskDataConfig(path=str(tmp_path / "train.jsonl"), val=str(tmp_path / "valid.jsonl"))
    given = {"model": str(minilm_folder()), "out": tmp_path / "out", "data": data, "vectors": tmp_path / "vectors"}
    return ProbeConfig(**{"strengths": (1e-2, 1.0), **given, "threads": 1, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [("bad", "good"), ("bad", "good", "thing")], ids=len)
def test_the_folder_answers_as_scikit_learn_on_transformers_states(labels, tmp_path) -> None:
    result = probe(config(tmp_path, labels), json=True)
    training, held_out = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("train.jsonl", "valid.jsonl")
    )
    scaler = StandardScaler()
    features = scaler.fit_transform(states(minilm_folder(), [row["text"] for row in training]))
    targets = [row["label"] for row in training]
    texts = [row["text"] for row in held_out]
    asked = scaler.transform(states(minilm_folder(), texts))

    def shares(strength: float) -> np.ndarray:
        return LogisticRegression(C=strength, max_iter=5000).fit(features, targets).predict_proba(asked)

    found = predict(PredictConfig(str(tmp_path / "out"), file=str(tmp_path / "valid.jsonl")), json=True)
    assert tuple(found["labels"]) == labels == tuple(result["labels"])
    told = np.array([list(one["probabilities"].values()) for one in found["answers"]])
    assert np.abs(told - shares(result["strength"])).max() < 1e-3
    assert np.abs(told - shares(result["strength"] * 10)).max() > 1e-2  # the control: another strength is another head
    right = np.mean([one["label"] == row["label"] for one, row in zip(found["answers"], held_out, strict=True)])
    accuracy = result["scores"]["accuracy"]
    assert accuracy["value"] == pytest.approx(right) and accuracy["n"] == len(held_out)
    assert accuracy["interval"][0] <= right <= accuracy["interval"][1] and right > 0.7
    assert result["trained_parameters"] == (385 if len(labels) == 2 else 3 * 385)
    encoder = load_encoder(tmp_path / "out")  # what fledge serve has behind /classify
    assert encoder.facts["purpose"] == "classify" and tuple(encoder.facts["labels"]) == labels
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder())
    served = torch.softmax(encoder.numbers(tokenizer(texts)["input_ids"]), -1).numpy()
    assert np.abs(served - told).max() < 1e-6


def test_the_strength_is_chosen_by_the_training_rows_and_nothing_is_pickled(tmp_path) -> None:
    given = config(tmp_path, ("bad", "good"), strengths=(1e-6, 1.0))
    result = probe(given, json=True)
    assert result["strength"] == max((1e-6, 1.0), key=lambda c: (result["folds"][f"{c:g}"], -c))
    assert {one.suffix for one in (tmp_path / "out").iterdir()} <= {".json", ".safetensors"}
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert set(card["parents"]) == {"base", "data"} and card["facts"]["result"]["strength"] == result["strength"]
    original, published = load_model(minilm_folder()), load_model(tmp_path / "out")
    same = dict(original.named_parameters())
    assert all(torch.equal(p, same[n]) for n, p in published.named_parameters() if not n.startswith("heads."))
    # The second time vectors come from the disk, and the head is equal to the bit: nothing in it is random.
    again = probe(config(tmp_path, ("bad", "good"), strengths=(1e-6, 1.0), out=tmp_path / "again"), json=True)
    assert again["vectors_reused"] and not result["vectors_reused"] and again["vectors"] == result["vectors"]
    weights = [load_model(tmp_path / name).heads["sequence"].out.weight for name in ("out", "again")]
    assert torch.equal(*weights) and again["scores"] == result["scores"]
    with pytest.raises(ConfigError, match="out: expected a new or empty folder"):
        probe(given)


def test_kept_vectors_are_checked_when_they_are_read(tmp_path) -> None:
    made = []

    def make() -> np.ndarray:
        made.append(1)
        return np.arange(6, dtype=np.float32).reshape(2, 3)

    assert kept_vectors(tmp_path, "a", make)[1] is False and kept_vectors(tmp_path, "a", make)[1] is True
    assert len(made) == 1
    data = bytearray((tmp_path / "a.npy").read_bytes())
    data[-1] ^= 1
    (tmp_path / "a.npy").write_bytes(bytes(data))
    found, kept = kept_vectors(tmp_path, "a", make)
    assert not kept and len(made) == 2 and np.array_equal(found, make())
    (tmp_path / "a.json").write_text("nothing")
    assert kept_vectors(tmp_path, "a", make)[1] is False


def test_a_decoder_is_probed_at_its_last_token(tmp_path) -> None:
    words = byte_level()
    shape = ShapeConfig("llama", width=32, layers=2, heads=4, context_tokens=64, vocab_size=words.vocab_size)
    save_model(initialise(build(family("llama").build(shape), "cpu"), 5), tmp_path / "decoder", words)
    result = probe(config(tmp_path, ("bad", "good"), model=str(tmp_path / "decoder")), json=True)
    assert (result["pooling"], result["width"], result["trained_parameters"]) == ("last", 32, 33)
    assert predict(PredictConfig(str(tmp_path / "out"), text="so dull"), json=True)["answers"][0]["label"] in WORDS


def test_what_it_cannot_do_is_refused_by_name(tmp_path) -> None:
    given = config(tmp_path, ("bad", "good"))
    for row, says in (
        ({"text": "a", "text_pair": "b", "label": "good"}, "got two texts"),
        ({"text": "a", "label": ["good"]}, "got several labels"),
    ):
        (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row))
        with pytest.raises(DataError, match=f"{says}; use fledge finetune"):
            probe(given)
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"text": "a", "label": one}) for one in ("good", "bad")))
    with pytest.raises(DataError, match=r"5 rows each, one for a fold; got \[1, 1\]"):
        probe(given)
    folder, words = tmp_path / "lowers", byte_level()
    shape = ShapeConfig("bert", width=32, layers=1, heads=4, context_tokens=64, vocab_size=words.vocab_size)
    body = initialise(build(family("bert").build(shape), "cpu"), 5)
    save_sentence_model(SentenceModel(body, words, SentenceConfig(max_tokens=64, lower=True)), folder)
    with pytest.raises(ConfigError, match="asks for lowered texts"):
        probe(config(tmp_path, ("bad", "good"), model=str(folder)))
    for fields, says in (
        ({"folds": 1}, "folds"),
        ({"strengths": (0.0,)}, "strengths"),
        ({"strengths": ()}, "strengths"),
    ):
        with pytest.raises(ConfigError, match=f"{says}: expected"):
            ProbeConfig("m", **fields)  # type: ignore[arg-type]
