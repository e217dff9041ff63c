"""What a layer is made of, as data: mixer, feed-forward, position, pattern, norm, and the stack they form.

Imports no torch. `fledge.nn.check` says which of them go together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from fledge.errors import ConfigError

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "quick_gelu", "tanh"]
NormSlot = Literal["before", "after", "residual"]
Parallel = Literal["", "one_norm", "two_norms"]

MAX_WIDTH = 1 << 20
MAX_LAYERS = 4096
MAX_HEADS = 1 << 16
MAX_CONTEXT = 1 << 26
MAX_EXPERTS = 1 << 12
MAX_ALL_EXPERTS = 1 << 16  # of all layers together
INT4_GROUPS = (32, 64, 128)  # inputs that share a scale in a map of 4-bit weights


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed for documents longer than those of pre-training (see `fledge.nn.rope`)."""

    kind: Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
    """linear, dynamic (NTK), yarn, llama3 or longrope."""
    factor: float = 1.0
    """How much longer documents get."""
    original_tokens: int = 0
    """Longest document of pre-training; 0: context_tokens (linear and dynamic: divided by factor)."""
    low_frequency: float = 1.0
    """llama3: waves of which at most so many fit into the original length are stretched."""
    high_frequency: float = 4.0
    """llama3: waves of which at least so many fit into the original length are kept."""
    beta_fast: float = 32.0
    """yarn: channels that turn more often than this over the original length are kept."""
    beta_slow: float = 1.0
    """yarn: channels that turn less often than this are stretched."""
    attention_factor: float | None = None
    """yarn, longrope: factor on cosine and sine; unset: by the paper's rule."""
    mscale: float = 0.0
    """yarn: numerator's weight in that rule; 0: the plain rule."""
    mscale_all: float = 0.0
    """yarn: denominator's weight in that rule; 0: the plain rule."""
    truncate: bool = True
    """yarn: whether the two bounds are rounded to whole channels."""
    short_factors: tuple[float, ...] = ()
    """longrope: a divisor for each pair of channels, in documents up to the original length."""
    long_factors: tuple[float, ...] = ()
    """longrope: the same in longer documents."""


@dataclass(frozen=True)
class Rope:
    """Rotary position (Su et al. 2021, arXiv 2104.09864), half-split pairs: channel c turns with channel c + R/2 of the
    first R = `channels` channels of a head (0: all)."""

    theta: float = 10000.0
    channels: int = 0
    scaling: RopeScaling | None = None


@dataclass(frozen=True)
class Alibi:
    """Scores fall linearly with distance, at a slope of each head's own (Press et al. 2021, arXiv 2108.12409).

    `coarse`: as Falcon was trained, slope · position of the key in bfloat16, divided by the root of a head's channels.
    """

    coarse: bool = False


@dataclass(frozen=True)
class Buckets:
    """T5's relative positions (Raffel et al. 2019, arXiv 1910.10683): distances in `n_buckets`, near ones exact, far
    ones logarithmic up to `max_distance`; each bucket adds a learned number a head. One table for the whole stack."""

    n_buckets: int = 32
    max_distance: int = 128


@dataclass(frozen=True)
class Disentangled:
    """DeBERTa (He et al. 2020, arXiv 2006.03654): scores add content-to-position and position-to-content terms.

    Distances are cut at `span`, or put in logarithmic `buckets` up to it (v2, v3). `shared_maps`: positions go through
    the layer's own query and key maps (v2); otherwise through maps of their own (v1). `norm`: the table is normalised.
    """

    span: int = 512
    buckets: int = 0
    content_to_position: bool = True
    position_to_content: bool = True
    shared_maps: bool = False
    norm: bool = False


Position: TypeAlias = Rope | Alibi | Buckets | Disentangled | None


@dataclass(frozen=True)
class Longformer:
    """A local window of `window // 2` to each side; tokens of kind GLOBAL see all and are seen by all
    (Beltagy et al. 2020, arXiv 2004.05150)."""

    window: int


@dataclass(frozen=True)
class BigBird:
    """Blocks of `block` tokens: the first and the last global, each sees its neighbours and `n_random` random blocks
    (Zaheer et al. 2020, arXiv 2007.14062), which (seed, block) decides.

    `fixed`: no block is drawn; the first block's keys count 1 + `n_random` times instead, except for queries of the
    first and last block. That is what transformers computes outside training. `full_tokens`: documents of at most so
    many tokens are attended to in full.
    """

    block: int
    n_random: int
    seed: int = 0
    fixed: bool = False
    full_tokens: int = 0


@dataclass(frozen=True)
class Strided:
    """Sparse Transformer, strided (Child et al. 2019, arXiv 1904.10509, §4.2): the last `stride` positions, and every
    `stride`-th before."""

    stride: int


@dataclass(frozen=True)
class Fixed:
    """Sparse Transformer, fixed (§4.2): the own block of `stride` positions, and the last `summary` of each block."""

    stride: int
    summary: int = 1


@dataclass(frozen=True)
class Prefix:
    """Tokens of kind GLOBAL form a prefix that the whole document sees, whatever its place (prefix LM)."""


Pattern: TypeAlias = Longformer | BigBird | Strided | Fixed | Prefix | None


@dataclass(frozen=True)
class Norm:
    """LayerNorm ("layer"), RMSNorm ("rms"), or BatchNorm over the batch's tokens ("batch", for comparison).

    `weight`, `bias`: whether there are such parameters. `offset` is added to the weight (Gemma keeps weight - 1).
    """

    kind: Literal["layer", "rms", "batch"]
    eps: float
    bias: bool = False
    weight: bool = True
    offset: float = 0.0


@dataclass(frozen=True)
class Heads:
    """Multi-head attention; fewer key/value heads than heads is grouped-query (one: multi-query).

    `scale` multiplies the scores (None: 1/sqrt(head_channels)); `softcap` bounds them to ± softcap by tanh; `qk_norm`
    normalises queries and keys before they turn: each head by weights that all share ("head") or by weights of its own
    without bias ("own"), or all heads at once ("whole"); `global_maps`: tokens of kind GLOBAL have query, key and value
    maps of their own (Longformer). `key_bias` False: only queries and values have the bias of `qkv_bias` (DeBERTa v1).
    `clip`: queries, keys and values are cut off at ± clip, behind `qk_norm` and before they turn.
    """

    n_heads: int
    n_kv_heads: int
    head_channels: int
    qkv_bias: bool = False
    out_bias: bool = False
    scale: float | None = None
    softcap: float | None = None
    qk_norm: Literal["", "head", "own", "whole"] = ""
    global_maps: bool = False
    key_bias: bool = True
    clip: float | None = None


@dataclass(frozen=True)
class Kernelised(Heads):
    """Linear attention with the feature map elu(x) + 1: time linear in length (Katharopoulos et al. 2020,
    arXiv 2006.16236)."""


@dataclass(frozen=True)
class LowRank(Heads):
    """Linformer (Wang et al. 2020, arXiv 2006.04768): the keys and values of a document of at most `tokens` tokens are
    mixed down to `rank` rows. Mixes all positions, so it has no causal form."""

    rank: int = 64
    tokens: int = 512


Mixer: TypeAlias = Heads | Kernelised | LowRank


@dataclass(frozen=True)
class Dense:
    """Feed-forward of one hidden layer; `gated` multiplies activation(gate(x)) with up(x) (SwiGLU and kin)."""

    hidden: int
    activation: Activation
    gated: bool = False
    bias: bool = False


@dataclass(frozen=True)
class Moe:
    """`n_experts` feed-forwards of which each token uses the `top_k` that its router scores highest (Shazeer et al.
    2017, arXiv 1701.06538). No token is dropped. `renormalise`: the chosen weights sum to 1 (Mixtral). `balance`:
    coefficient of the load-balancing loss (Fedus et al. 2021, arXiv 2101.03961, eq. 4)."""

    expert: Dense
    n_experts: int
    top_k: int
    renormalise: bool = True
    balance: float = 0.0


Ffn: TypeAlias = Dense | Moe


@dataclass(frozen=True)
class LayerConfig:
    """One block: how tokens mix, how channels mix, how the mixer knows positions, what it sees.

    `window`: a causal query sees its last `window` positions, itself included; a bidirectional one `window // 2` to
    each side. `input_norm` False: this layer's attention has no "before" norm (ModernBERT's first).
    """

    mixer: Mixer
    ffn: Ffn
    position: Position = None
    window: int | None = None
    pattern: Pattern = None
    input_norm: bool = True

    @property
    def dense(self) -> Dense:
        """The feed-forward, or one expert of a mixture."""
        return self.ffn.expert if isinstance(self.ffn, Moe) else self.ffn


@dataclass(frozen=True)
class Conv:
    """A convolution over neighbouring tokens of the inputs, added after the first block (DeBERTa v2)."""

    kernel: int
    groups: int = 1
    activation: Activation = "tanh"


@dataclass(frozen=True)
class Inputs:
    """What a stack makes of the token embedding before its first block.

    `positions`: added to it, a learned table of `rows` whose row for position p is p + `offset`, or sines (Vaswani et
    al. 2017, §3.5). `kinds`: rows of a token-kind (segment) table. `scale` multiplies the embedding. `norm`: normalised
    after the sum. `width`: channels of the embedding when a product takes them to the stack's (0: the same); it comes
    last, or with `widen_first` before all that is added.
    """

    positions: Literal["", "learned", "sinusoidal"] = ""
    rows: int = 0
    offset: int = 0
    kinds: int = 0
    scale: float = 1.0
    norm: bool = False
    width: int = 0
    width_bias: bool = True
    widen_first: bool = False


@dataclass(frozen=True)
class StackConfig:
    """A stack of blocks.

    `norm_at`: which slots around a sublayer hold a norm ("before": pre-norm; "after": on its output; "residual": on the
    sum, post-norm). `final_norm`: a norm after the last block (None: if blocks normalise before). `parallel`: attention
    and feed-forward read the same residual, through one norm or two. `cross`: each block also attends to the encoder's
    output. `shared`: which block each layer uses, when fewer blocks than layers exist (ALBERT). `conv`: a
    convolution beside the first block.
    """

    width: int
    layers: tuple[LayerConfig, ...]
    norm: Norm
    norm_at: tuple[NormSlot, ...] = ("before",)
    causal: bool = True
    dropout: float = 0.0
    inputs: Inputs = Inputs()
    final_norm: bool | None = None
    parallel: Parallel = ""
    cross: Heads | None = None
    shared: tuple[int, ...] = ()
    conv: Conv | None = None

    @property
    def has_final_norm(self) -> bool:
        return "before" in self.norm_at if self.final_norm is None else self.final_norm

    @property
    def block_of_layer(self) -> tuple[int, ...]:
        """The block that each layer uses."""
        return self.shared or tuple(range(len(self.layers)))

    @property
    def n_blocks(self) -> int:
        return max(self.block_of_layer, default=-1) + 1


def bounded(at: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{at}: expected an integer in {low}..{high}, got {str(value)[:40]}")


def nearest_divisor(whole: int, wanted: int) -> int:
    """The divisor of `whole` that is nearest to `wanted`."""
    return min((d for d in range(1, whole + 1) if whole % d == 0), key=lambda d: abs(d - wanted))
