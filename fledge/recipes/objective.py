"""What an objective of pre-training needs of tokenizer and model, and which recipe trains it."""

from __future__ import annotations

from dataclasses import replace

from fledge.data.segments import frame_of
from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families import family, over_preset
from fledge.model.families.family import Family
from fledge.model.start import start_id
from fledge.recipes.config import PretrainConfig
from fledge.recipes.denoise import with_prefix
from fledge.recipes.masked import PAIRED, relation_of
from fledge.text.extend import extended, sentinels, with_frame
from fledge.text.tokenizer import Tokenizer

MASKED = ("masked", *PAIRED)
FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


def objective_tokenizer(config: PretrainConfig, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the special tokens that the objective needs and it lacks: after the others, so that no text
    is tokenised otherwise. Where rows have a frame its file says so, so that whoever reads the folder frames a text as
    rows were."""
    has, needed = tokenizer.special, []
    objective = config.objective
    if objective == "causal":
        known = any(tokenizer.id_of(name) is not None for name in ("<fim_prefix>", "<fim-prefix>", "<PRE>"))
        return extended(tokenizer, FIM) if config.infill.rate and not known else tokenizer
    if "pad" not in has:
        needed.append("[PAD]" if objective in MASKED else "<pad>")
    if objective in MASKED:
        if not {"cls", "bos"} & set(has):
            needed.append("[CLS]")
        if not {"sep", "eos"} & set(has):
            needed.append("[SEP]")
    elif not {"sep", "eos"} & set(has):
        needed.append("</s>")
    if objective in (*MASKED, "denoise") and "mask" not in has:
        needed.append("[MASK]" if objective in MASKED else "<mask>")
    if objective == "spans" and tokenizer.id_of("<extra_id_0>") is None:
        needed += sentinels()
    found = extended(tokenizer, needed)
    if objective not in (*MASKED, "denoise"):
        return found
    frame = frame_of(found)
    return with_frame(found, frame.before, frame.after)


def objective_shape(config: PretrainConfig) -> ShapeConfig:
    """The shape with the task that the objective trains, where the person named none."""
    shape = config.model
    if config.objective in PAIRED and not shape.task:
        own: Family = family(over_preset(shape).family)
        if any(task.name == "pretraining" for task in own.all_tasks):
            return replace(shape, task="pretraining")
    return shape


def objective_model(config: PretrainConfig, model: ModelConfig) -> ModelConfig:
    """The model that the objective trains. Raises ConfigError for a kind that can't be trained so."""
    objective, both = config.objective, model.decoder is not None and model.encoder is not None
    if config.infill.rate and objective != "causal":
        raise ConfigError(f"infill.rate: expected 0 for objective={objective}, got {config.infill.rate}; set it to 0")
    if config.train.sample_every_steps and objective != "causal":
        raise ConfigError(
            f"train.sample_every_steps: expected 0 for objective={objective}, whose model does not continue text, got "
            f"{config.train.sample_every_steps}; set it to 0"
        )
    if objective in MASKED:
        relation_of(model, objective)
        return after_padding(model)
    if not model.lm:
        raise ConfigError("model.task: expected a model with an output over the vocabulary; set model.task=lm")
    if objective == "causal" and model.encoder is not None:
        kind = "an encoder-decoder" if both else "an encoder"
        fit = "spans, denoise or prefix" if both else "masked"
        raise ConfigError(f"objective: causal expects a decoder, got {kind}, {model.family}; set objective={fit}")
    if objective in ("spans", "denoise") and not both:
        raise ConfigError(
            f"objective: {objective} expects an encoder-decoder, got {model.family}; choose model.family=t5 or bart"
        )
    if objective == "prefix" and model.decoder is None:
        raise ConfigError(f"objective: prefix expects a decoder, got {model.family}; choose one, or objective=masked")
    if both:
        return started(model)
    return with_prefix(model) if objective == "prefix" else model


def after_padding(model: ModelConfig) -> ModelConfig:
    """An encoder whose positions begin after the tokenizer's padding id, in families that count so (RoBERTa's)."""
    assert model.encoder is not None
    inputs = model.encoder.inputs
    if not inputs.offset:
        return model
    offset = model.special_ids["pad"] + 1
    inputs = replace(inputs, offset=offset, rows=inputs.rows - inputs.offset + offset)
    return replace(model, encoder=replace(model.encoder, inputs=inputs))


def started(model: ModelConfig) -> ModelConfig:
    """An encoder-decoder with the id that its decoder begins with, which its folder would state."""
    return replace(model, special_ids={**model.special_ids, "start": start_id(model)})
