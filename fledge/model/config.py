"""What a model is (`ModelConfig`) and what a person writes to get one (`ShapeConfig`). Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fledge.errors import ConfigError
from fledge.nn.check import check_stack
from fledge.nn.config import MAX_CONTEXT, MAX_WIDTH, Activation, Norm, RopeScaling, StackConfig, bounded

MAX_VOCAB = 1 << 24

InitName = Literal["normal", "gpt2_scaled", "xavier", "he", "constant"]


@dataclass(frozen=True)
class InitConfig:
    """How weights start. `std` is used by "normal" and "gpt2_scaled"; `constant` fills every matrix with `std`."""

    name: InitName = "gpt2_scaled"
    """normal, gpt2_scaled (smaller where a product ends in the residual stream), xavier, he or constant."""
    std: float = 0.02
    """Standard deviation of normal and gpt2_scaled, and of embeddings; the value of constant."""


Take = Literal["first", "last", "each", "mean", "eos"]
PROBLEMS = ("", "regression", "single_label_classification", "multi_label_classification")


@dataclass(frozen=True)
class Transform:
    """A product, an activation and a norm before the output product (BERT's masked-LM head); the product alone where
    there are neither (OPT 350M)."""

    activation: Activation | None
    norm: Norm | None
    bias: bool = True


@dataclass(frozen=True)
class HeadConfig:
    """A task's map from hidden states to `labels` numbers.

    `take`: whose states: the first token's, the last's, the last end-of-document's, the mean, or each token's own.
    `hidden`: a product and `activation` come first, and with `norm` the stack's norm after them. `labels` 0: nothing
    follows it (BERT's pooler). `bias`: the last product's, `hidden_bias`: the first's. `label_names` and `problem`
    (one of PROBLEMS) are kept for whoever trains or reads the head; one label is a regression, or a reward.
    `global_first`: where Tokens name no kinds, the first is GLOBAL (Longformer's classifier).
    """

    name: str
    take: Take
    labels: int
    hidden: bool = False
    activation: Activation = "tanh"
    bias: bool = True
    hidden_bias: bool = True
    norm: bool = False
    global_first: bool = False
    label_names: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class ModelConfig:
    """A whole model. Decoder only is GPT, encoder only is BERT, both is T5; with both, tokens go to the decoder and
    source tokens to the encoder, through one embedding.

    `lm`: there is an output product over the vocabulary. `tie`: its matrix is the embedding. `transform`: what comes
    before it. `logit_scale` multiplies what it reads, `logit_softcap` bounds logits by tanh. `heads`: task heads.
    `special_ids`: role -> token id (bos, eos, pad, start), written into config.json. `tokens`: how many of the
    vocabulary's rows are tokens, the others filling it up (0: all).
    """

    family: str
    vocab_size: int
    context_tokens: int
    decoder: StackConfig | None
    encoder: StackConfig | None = None
    lm: bool = True
    tie: bool = False
    output_bias: bool = False
    transform: Transform | None = None
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    heads: tuple[HeadConfig, ...] = ()
    init: InitConfig = InitConfig()
    special_ids: dict[str, int] = field(default_factory=dict)
    tokens: int = 0

    def __post_init__(self) -> None:
        bounded("vocab_size", self.vocab_size, 1, MAX_VOCAB)
        bounded("context_tokens", self.context_tokens, 1, MAX_CONTEXT)
        bounded("tokens", self.tokens, 0, self.vocab_size)
        if not self.stacks:
            raise ConfigError("model: expected a decoder, an encoder or both, got neither")
        for name, stack in self.stacks.items():
            check_stack(stack, name)
            inputs = stack.inputs
            rows = inputs.rows - inputs.offset
            if inputs.positions == "learned" and rows < self.context_tokens:
                raise ConfigError(
                    f"context_tokens: {self.context_tokens} exceeds the {rows} learned positions of the {name}"
                )
        if len({stack.inputs.width or stack.width for stack in self.stacks.values()}) > 1:
            raise ConfigError("model: expected encoder and decoder of one embedding width, got two")
        cap = self.logit_softcap
        if not 0 < abs(self.logit_scale) <= 1e9 or cap is not None and not 1e-9 <= cap <= 1e9:
            raise ConfigError(
                f"model: expected a logit_scale of at most 1e9 and a logit_softcap in 1e-9..1e9, got "
                f"{self.logit_scale}, {cap}"
            )
        for head in self.heads:
            bounded(f"heads.{head.name}.labels", head.labels, 0, MAX_WIDTH)
            if head.label_names and len(head.label_names) != head.labels:
                raise ConfigError(f"heads.{head.name}: expected {head.labels} label names, got {len(head.label_names)}")

    @property
    def stacks(self) -> dict[str, StackConfig]:
        """The stacks there are, by name, in the order that they compute."""
        pair = {"encoder": self.encoder, "decoder": self.decoder}
        return {name: stack for name, stack in pair.items() if stack is not None}

    @property
    def stack(self) -> StackConfig:
        """The stack whose output the heads read: the decoder, or the encoder of an encoder-only model."""
        stack = self.decoder or self.encoder
        assert stack is not None
        return stack

    @property
    def embedding_width(self) -> int:
        """Channels of the embedding."""
        return self.stack.inputs.width or self.stack.width


@dataclass(frozen=True)
class ShapeConfig:
    """The size of a new model, in the words of a YAML file. Unset numbers follow the family's custom."""

    family: str = "llama"
    """Which architecture (llama, qwen3, gpt2, bert, t5…; a wrong name lists all); the family decides norm,
    position, activation and weight names."""
    preset: str = ""
    """A published size (for example gpt2-medium or llama-2-7b); the fields below then change it."""
    width: int = 0
    """Channels of the residual stream."""
    layers: int = 0
    """Number of blocks."""
    heads: int = 0
    """Number of attention heads; width must be a multiple unless head_channels is set."""
    kv_heads: int = 0
    """Number of key/value heads; 0: as many as heads."""
    head_channels: int = 0
    """Channels per head; 0: width / heads."""
    hidden: int = 0
    """Channels inside the feed-forward; 0: the family's custom (4 x width; gated: 8/3 x width, rounded up to 32)."""
    gated: bool | None = None
    """Whether the feed-forward multiplies with a gate, in families that have both; unset: the family's custom."""
    encoder_layers: int = 0
    """Number of blocks of the encoder in an encoder-decoder; 0: as many as layers."""
    context_tokens: int = 0
    """Longest document in tokens."""
    vocab_size: int = 0
    """Entries of the embedding; 0: the tokenizer's."""
    tie: bool | None = None
    """Whether the output matrix is the embedding; unset: the family's custom."""
    bias: bool | None = None
    """Whether linears and norms have biases; unset: the family's custom."""
    activation: Literal["", "silu", "gelu", "gelu_tanh", "relu"] = ""
    """The feed-forward's activation; empty: the family's custom."""
    rope_theta: float = 0.0
    """Base of the rotary angles; 0: the family's custom."""
    rope_scaling: RopeScaling | None = None
    """How rotary frequencies are changed for documents longer than the original ones; unset: not at all."""
    rope_share: float = 0.0
    """Share of each head's channels that turn; 0: the family's custom."""
    window: int = 0
    """Positions that a token sees in layers with a sliding window, itself included; 0: the family's custom."""
    window_every: int = 0
    """Every so many layers one sees everything, the others the window; 0: the family's custom."""
    score_channels: int = 0
    """Scores are divided by the root of this number; 0: head_channels, or the family's custom."""
    experts: int = 0
    """Feed-forwards of a mixture; 0: the family's custom."""
    experts_per_token: int = 0
    """How many of them each token uses; 0: the family's custom."""
    norm_eps: float = 0.0
    """Epsilon of the norms; 0: the family's custom."""
    embedding_width: int = 0
    """Channels of the embedding in families that widen it (albert, electra, opt); 0: the family's custom."""
    conv_kernel: int = 0
    """Tokens that a convolution beside the first block sees (deberta-v2); 0: there is none."""
    task: str = ""
    """What the model is for, in the family's words (base, lm, sequence, token, span…); empty: its first."""
    labels: int = 0
    """Labels of a sequence or token head; 0: two."""
    position: Literal["", "none", "sinusoidal", "learned", "rope", "alibi", "buckets", "disentangled"] = ""
    """How tokens know their place, in any family; empty: the family's custom."""
    attention: Literal["", "full", "window", "longformer", "bigbird", "strided", "fixed", "linformer", "linear"] = ""
    """How tokens see each other, in any family; empty: the family's custom."""
    stride: int = 0
    """Block of strided and fixed attention in tokens; 0: 128."""
    summary: int = 0
    """Last tokens of each block that fixed attention shows to all; 0: 1."""
    block: int = 0
    """Tokens of a block of bigbird; 0: 64."""
    random_blocks: int = 0
    """Random blocks that each block of bigbird sees; 0: 3."""
    rank: int = 0
    """Rows that linformer mixes keys and values down to; 0: 64."""
    norm: Literal["", "layer", "rms", "batch"] = ""
    """Kind of norm, in any family; empty: the family's custom."""
    norm_at: Literal["", "before", "after", "sandwich", "residual"] = ""
    """Where norms stand: on a sublayer's input, its output, both, or the sum; empty: the family's custom."""
    dropout: float = 0.0
    """Share of activations dropped in training."""
    init: InitConfig = InitConfig()
    """How weights start."""
