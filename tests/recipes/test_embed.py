"""`fledge embed`: transformers' vectors in the file's order, chunk by chunk; what is wrong leaves nothing behind."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from fledge.errors import ConfigError, DataError
from fledge.recipes import embed as embed_module
from fledge.recipes.embed import embed, passes
from fledge.recipes.embed_config import EmbedConfig
from fledge.recipes.npy_file import npy_rows
from tests.sentences import expected_vectors, minilm_folder

TEXTS = ["A film.", "", "dull " * 40, "日本語 \u2028 in one line", "word " * 300, "A quiet, patient film", "x"]


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return expected_vectors(minilm_folder(), TEXTS).numpy()


@pytest.mark.parametrize("form", ["txt", "jsonl", "jsonl.gz"])
def test_vectors_are_those_of_transformers_in_the_files_order(form, expected, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(embed_module, "CHUNK_TEXTS", 3)
    path = tmp_path / f"texts.{form}"
    lines = TEXTS if form == "txt" else [json.dumps({"id": n, "text": text}) for n, text in enumerate(TEXTS)]
    data = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if form.endswith("gz") else data)
    out = tmp_path / "deep" / "vectors.npy"
    result = embed(EmbedConfig(str(minilm_folder()), str(path), out, batch_tokens=64, threads=1), json=True)
    found = np.load(out, allow_pickle=False)
    assert found.dtype == np.float32 and found.shape == (len(TEXTS), 384)
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(found[::-1] - expected).max() > 0.1  # the control: the order matters
    assert (result["texts"], result["width"], result["cut"], result["max_tokens"]) == (len(TEXTS), 384, 1, 256)
    assert [one.name for one in out.parent.iterdir()] == ["vectors.npy"]


def test_what_is_wrong_names_its_place_and_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(embed_module, "CHUNK_TEXTS", 1)
    path, out = tmp_path / "rows.jsonl", tmp_path / "v.npy"
    out.write_bytes(b"old")
    for lines, says in (
        ('{"text": "a"}\nnothing', "line 2: expected JSON"), ('"a"\n[1]', "line 2: expected an object or a string"),
        ('"a"\n{"txt": "b"}', "line 2: expected a text as text or"), ("", "expected texts, found none"),
        ('"a"\n{"text": 3}', "line 2: expected a text as"),
    ):  # fmt: skip
        path.write_text(lines)
        with pytest.raises(DataError, match=says):
            embed(EmbedConfig(str(minilm_folder()), str(path), out, threads=1))
        assert out.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2
    path.write_bytes(b'"a"\n"\xff"\n')
    with pytest.raises(DataError, match="can't be read as UTF-8"):
        embed(EmbedConfig(str(minilm_folder()), str(path), out, threads=1))
    with pytest.raises(DataError, match="found none; check the path"):
        embed(EmbedConfig(str(minilm_folder()), str(tmp_path / "none.txt"), out, threads=1))
    for fields, says in (({"out": tmp_path / "v.bin"}, "ends in .npy"), ({"prompt": "query"}, "prompt: expected")):
        path.write_text('"a"')
        with pytest.raises(ConfigError, match=says):
            embed(EmbedConfig(str(minilm_folder()), **{"texts": str(path), "out": out, "threads": 1, **fields}))
    with pytest.raises(ConfigError, match="batch_tokens: expected at least 1"):
        EmbedConfig("m", batch_tokens=0)


def test_passes_take_every_row_once_within_their_budget() -> None:
    rows = [[0] * length for length in np.random.default_rng(0).integers(0, 50, 200).tolist()] + [[0] * 300]
    found = list(passes(rows, 128))
    assert sorted(place for batch in found for place in batch) == list(range(201))
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(len(rows[place]) for place in batch) <= 128


def test_a_numpy_file_of_rows_as_they_come_is_numpys_own(tmp_path) -> None:
    rows = np.random.default_rng(0).normal(size=(10, 7)).astype(np.float32)
    with npy_rows(tmp_path / "a.npy", 7) as out:
        out.add(rows[:4])
        assert not (tmp_path / "a.npy").exists()  # nobody sees half of it
        out.add(rows[4:])
    assert np.array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), rows)
    with pytest.raises(ZeroDivisionError), npy_rows(tmp_path / "b.npy", 7):
        _ = 1 / 0
    assert [one.name for one in tmp_path.iterdir()] == ["a.npy"]
    with pytest.raises(ConfigError, match="can't be written"), npy_rows(tmp_path / "a.npy" / "c.npy", 7):
        pass
