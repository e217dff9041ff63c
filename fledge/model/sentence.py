"""Sentence embeddings: sentence-transformers' folders in and out, and texts to vectors.

Such a folder is a model folder with modules.json (which steps follow the model), 1_Pooling/config.json, at times
2_Dense with weights of its own, and at times 3_Normalize, whose folder holds nothing and is missing in many copies.
Source of the method: Reimers & Gurevych 2019 (arXiv 1908.10084).

B rows, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge.batch import Padded, padded
from fledge.config import read_json
from fledge.errors import ConfigError
from fledge.model.folder import find_model, load_model, save_model, write_json
from fledge.model.sentence_dense import DenseLayer, load_dense, save_dense
from fledge.model.sentence_steps import MODULES, POOLINGS, steps_of
from fledge.model.transformer import Transformer
from fledge.nn.config import MAX_CONTEXT, bounded
from fledge.text.tokenizer import Tokenizer

FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The old spelling of a pooling, which versions 2 to 6 of sentence-transformers read."""
POOLING = "1_Pooling"
LENGTH, PROMPTS = "sentence_bert_config.json", "config_sentence_transformers.json"
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
KINDS = ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")  # whose files older versions wrote
LENGTHS = (LENGTH, *(f"sentence_{kind}_config.json" for kind in KINDS))


@dataclass(frozen=True)
class SentenceConfig:
    """What follows the model. `pooling`: one of POOLINGS, or several whose vectors stand side by side. `normalise`: to
    length 1. `max_tokens`: longer texts are cut. `lower`: texts are lowered first. `prompts`: by name, what stands
    before a text; `default_prompt`: the name of the one that every text gets (empty: none). `similarity`: how vectors
    are to be compared, for whoever does."""

    pooling: tuple[str, ...] = ("mean",)
    normalise: bool = True
    max_tokens: int = 512
    lower: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    similarity: str = "cosine"

    def __post_init__(self) -> None:
        if not self.pooling or any(name not in POOLINGS for name in self.pooling):
            raise ConfigError(f"pooling: expected some of {', '.join(POOLINGS)}, got {str(self.pooling)[:60]}")
        bounded("max_tokens", self.max_tokens, 1, MAX_CONTEXT)
        if self.similarity not in SIMILARITIES:
            raise ConfigError(
                f"similarity: expected one of {', '.join(SIMILARITIES)}, got {str(self.similarity)[:40]!r}"
            )
        if self.default_prompt and self.default_prompt not in self.prompts:
            raise ConfigError(f"default_prompt: expected one of {', '.join(self.prompts)}, got {self.default_prompt!r}")


class SentenceModel:
    """Texts to vectors by a model, its tokenizer and what follows: pooling, the layers of `dense`, normalising."""

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, config: SentenceConfig, dense: Sequence[DenseLayer] = ()
    ):
        self.model, self.tokenizer, self.config, self.dense = model.eval(), tokenizer, config, tuple(dense)

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.dense[-1].weight.shape[0] if self.dense else pooled_width(self.model, self.config.pooling)

    def encode(self, texts: Sequence[str], batch: int = 32, prompt: str | None = None) -> Tensor:
        """One vector a text, float32 [N, width]; a text's company changes its vector by rounding at most.

        `prompt`: a name in the config's prompts instead of the default one. Raises ConfigError for an unknown name.
        """
        rows = self.ids(texts, prompt)
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        found = torch.zeros(len(rows), self.width)
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            found[places] = self.vectors([rows[place] for place in places]).float().cpu()
        return found

    def ids(self, texts: Sequence[str], prompt: str | None = None) -> list[list[int]]:
        """The ids of each text with the model's special tokens, cut to `max_tokens`."""
        config = self.config
        name = config.default_prompt if prompt is None else prompt
        if name and name not in config.prompts:
            raise ConfigError(f"prompt: expected one of {', '.join(config.prompts) or 'none'}, got {name!r:.60}")
        before = config.prompts[name] if name else ""
        whole = [before + text for text in texts]
        room = max(0, config.max_tokens - len(self.tokenizer.frame(()).ids))
        rows = self.tokenizer.encode_batch([text.lower() for text in whole] if config.lower else whole)
        return [list(self.tokenizer.frame(row[:room]).ids) for row in rows]

    @torch.inference_mode()
    def vectors(self, rows: list[list[int]]) -> Tensor:
        """The vectors of rows of ids: [B, width]."""
        return self.reduced(*self.states(rows))

    @torch.inference_mode()
    def states(self, rows: list[list[int]]) -> tuple[Tensor, Padded]:
        """The model's last states of rows of ids, [B, T, D], and how the rows lie in them."""
        tokens, layout = padded(rows, self.model.config.special_ids.get("pad", 0))
        return self.model.hidden(tokens.to(self.model.embedding.weight.device), layout), layout

    @torch.inference_mode()
    def reduced(self, states: Tensor, layout: Padded) -> Tensor:
        """One vector for each row's states."""
        parts = [pooled(states, layout, name) for name in self.config.pooling]
        joined = torch.cat(parts, -1)
        for layer in self.dense:
            joined = layer(joined.float())
        return torch.nn.functional.normalize(joined, dim=-1) if self.config.normalise else joined


def pooled_width(model: Transformer, pooling: Sequence[str]) -> int:
    return model.config.stack.width * len(pooling)


def pooled(states_BTD: Tensor, layout: Padded, name: str) -> Tensor:
    """One vector a row of padded rows, [B, D]; zeros for a row without tokens."""
    lengths = torch.tensor(layout.lengths, device=states_BTD.device)
    places = torch.arange(states_BTD.shape[1], device=states_BTD.device)
    there = (places[None] < lengths[:, None])[..., None]
    full = lengths[:, None] > 0
    if name == "cls":
        return torch.where(full, states_BTD[:, 0], 0.0)
    if name == "lasttoken":
        last = states_BTD[torch.arange(len(lengths), device=lengths.device), (lengths - 1).clamp(min=0)]
        return torch.where(full, last, 0.0)
    if name == "max":
        return torch.where(full, states_BTD.masked_fill(~there, -torch.inf).amax(1), 0.0)
    weight = there.to(states_BTD.dtype)
    if name == "weightedmean":
        weight = weight * (places + 1)[None, :, None].to(states_BTD.dtype)
    total, count = (states_BTD * weight).sum(1), weight.sum(1).clamp(min=1e-9)
    return total / count.sqrt() if name == "mean_sqrt_len_tokens" else total / count


def load_sentence_model(folder: str | Path, device: torch.device | str = "cpu") -> SentenceModel:
    """The sentence model of a folder of sentence-transformers or of ours.

    Raises ConfigError for modules that are not understood, and what load_model and Tokenizer.load raise.
    """
    inner = find_model(Path(folder) / steps_of(Path(folder))[0][1])
    return with_steps(Path(folder), load_model(inner, device, states_alone=True), Tokenizer.load(inner), device)


def with_steps(
    folder: Path, model: Transformer, tokenizer: Tokenizer, device: torch.device | str = "cpu"
) -> SentenceModel:
    """A model and its tokenizer with what follows them in a folder of sentence-transformers. Raises as
    `load_sentence_model`."""
    steps = steps_of(folder)
    inner = find_model(folder / steps[0][1])
    pooling = pooling_of(folder / steps[1][1])
    stated = next((found for at in (inner, folder) for name in LENGTHS if (found := optional_json(at / name))), {})
    prompts = optional_json(folder / PROMPTS)
    name = prompts.get("default_prompt_name")
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"{PROMPTS}: default_prompt_name: expected a name or null, got {str(name)[:40]!r}")
    length = stated.get("max_seq_length") or tokenizer.config.get("model_max_length") or model.config.context_tokens
    if isinstance(length, bool) or not isinstance(length, int | float) or length < 1:
        raise ConfigError(f"{LENGTH}: max_seq_length: expected a positive number, got {str(length)[:40]!r}")
    config = SentenceConfig(
        pooling=pooling,
        normalise=steps[-1][0] == "Normalize",
        max_tokens=int(min(length, model.config.context_tokens)),
        lower=stated.get("do_lower_case") is True,
        prompts=prompts_of(prompts.get("prompts")),
        default_prompt=prompts.get("default_prompt_name") or "",
        similarity=prompts.get("similarity_fn_name") or "cosine",
    )
    dense: list[DenseLayer] = []
    for path in (path for kind, path in steps if kind == "Dense"):
        width = dense[-1].weight.shape[0] if dense else pooled_width(model, pooling)
        dense.append(load_dense(folder / path, width, device))
    return SentenceModel(model, tokenizer, config, dense)


def pooling_of(folder: Path) -> tuple[str, ...]:
    """The poolings of 1_Pooling/config.json in either spelling, in their order. Raises ConfigError."""
    at = f"{folder.name}/config.json"
    raw = read_json(folder / "config.json")
    if not isinstance(raw, dict):
        raise ConfigError(f"{at}: expected a mapping, got {type(raw).__name__}")
    if raw.get("include_prompt", True) is not True:
        raise ConfigError(f"{at}: include_prompt: expected true, as prompts are pooled too; false is not supported")
    mode = raw.get("pooling_mode")
    modes = [mode] if isinstance(mode, str) else mode
    if modes is None:
        stated = {name for key, name in FLAGS.items() if raw.get(key) is True}
        modes = [name for name in POOLINGS if name in stated]
    if not isinstance(modes, list) or not modes or any(name not in POOLINGS for name in modes):
        raise ConfigError(f"{at}: pooling_mode: expected some of {', '.join(POOLINGS)}, got {str(modes)[:60]!r}")
    return tuple(modes)


def prompts_of(raw: Any) -> dict[str, str]:
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(isinstance(text, str) for text in raw.values()):
        raise ConfigError(f"{PROMPTS}: prompts: expected a mapping of names to texts, got {str(raw)[:40]!r}")
    return dict(raw)


def optional_json(path: Path) -> dict[str, Any]:
    """A mapping of a file that may not be there. Raises ConfigError for something else than a mapping."""
    raw = read_json(path) if path.is_file() else {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path.name}: expected a mapping, got {type(raw).__name__}")
    return raw


def steps_beside(folder: Path, model: Transformer, tokenizer: Tokenizer | None) -> SentenceModel | None:
    """The model that was read from a folder with what follows it there; None where nothing does. Raises as
    `load_sentence_model`."""
    if tokenizer is None or not (folder / MODULES).is_file():
        return None
    return with_steps(folder, model, tokenizer)


def save_sentence_model(sentences: SentenceModel, folder: str | Path, parents: dict[str, str] | None = None) -> None:
    """Write a folder that sentence-transformers opens. The folder must be the caller's scratch."""
    save_steps(sentences, Path(folder))
    save_model(sentences.model, folder, sentences.tokenizer, parents)


def save_steps(sentences: SentenceModel, folder: Path) -> None:
    """Write all of such a folder but its model and tokenizer."""
    config = sentences.config
    following = ["Pooling"] + ["Dense"] * len(sentences.dense) + ["Normalize"] * config.normalise
    kinds = [("Transformer", "")] + [(kind, f"{i}_{kind}") for i, kind in enumerate(following, 1)]
    for _, path in kinds:
        (folder / path).mkdir(parents=True, exist_ok=True)
    for layer, path in zip(sentences.dense, (path for kind, path in kinds if kind == "Dense"), strict=True):
        save_dense(layer, folder / path)
    write_json(
        folder / MODULES,
        [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
         for i, (kind, path) in enumerate(kinds)],
    )  # fmt: skip
    width = sentences.model.config.stack.width
    if list(config.pooling) != [name for name in POOLINGS if name in config.pooling]:
        raise ConfigError(f"pooling: expected the order {', '.join(POOLINGS)} in a folder, got {config.pooling}")
    flags = {key: name in config.pooling for key, name in FLAGS.items()}
    write_json(folder / POOLING / "config.json", {"word_embedding_dimension": width, **flags, "include_prompt": True})
    if config.normalise:
        write_json(folder / kinds[-1][1] / "config.json", {})
    write_json(folder / LENGTH, {"max_seq_length": config.max_tokens, "do_lower_case": config.lower})
    prompts = {"prompts": config.prompts, "default_prompt_name": config.default_prompt or None}
    write_json(folder / PROMPTS, {**prompts, "similarity_fn_name": config.similarity})
