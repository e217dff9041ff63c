"""Whether a teacher's layers can teach a student's, and the matrix that takes states of one width to the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from fledge.compress.inner import InnerLessons, layer_pairs
from fledge.errors import CheckpointError, ConfigError
from fledge.model.init import generator_for
from fledge.model.safetensors_file import SafetensorsFile, write_safetensors
from fledge.model.transformer import Transformer
from fledge.nn.config import Heads, LayerConfig, LowRank
from fledge.nn.linear import Linear
from fledge.recipes.distill_config import DistillConfig, TeacherConfig
from fledge.train.checkpointing import refuse_non_finite

WIDEN = "to_teacher"  # among the student's heads: its config doesn't know of it, so no folder has it
FILE = f"{WIDEN}.safetensors"


def inner_lessons(config: DistillConfig, student: Transformer, teacher: Transformer) -> InnerLessons | None:
    """What layers learn from layers; None where nothing of it counts. Raises ConfigError for layers that can't be
    compared."""
    lessons = config.teacher
    if not lessons.looks_inside:
        return None
    for wrong in settings_in_the_way(config):
        raise ConfigError(wrong)
    mine, theirs = student.config.stack, teacher.config.stack
    pairs = layer_pairs(len(mine.layers), len(theirs.layers), lessons.layer_map, lessons.layers)
    for one, other in pairs:
        for wrong in differences(lessons, mine.layers[one], theirs.layers[other]):
            raise ConfigError(f"{wrong}, got the student's layer {one} and the teacher's layer {other}")
    maps = lessons.attention_loss if lessons.attention else ""
    return InnerLessons(pairs, maps, lessons.values > 0, lessons.relation_heads, lessons.states > 0)


def settings_in_the_way(config: DistillConfig) -> Iterator[str]:
    """Ways of training in which a layer is not passed once and in the open."""
    for key, wrong, remedy in (
        ("train.checkpoint_blocks", config.train.checkpoint_blocks, "false"),
        ("train.compile", config.train.compile != "off", "off"),
        ("train.dropout.layers", config.train.dropout.layers, "0"),
    ):
        if wrong:
            yield f"{key}: expected {remedy} beside teacher.attention, teacher.values and teacher.states; set it so"


def differences(lessons: TeacherConfig, mine: LayerConfig, theirs: LayerConfig) -> Iterator[str]:
    """Why two layers can't be compared, in the words of an error's beginning."""
    if not (lessons.attention or lessons.values):
        return
    one, other = mine.mixer, theirs.mixer
    if isinstance(one, LowRank) or isinstance(other, LowRank):
        yield "teacher.attention: expected weights between tokens, which Linformer has not; use teacher.states"
    if (mine.window, mine.pattern) != (theirs.window, theirs.pattern):
        yield "teacher.attention: expected layers that see the same tokens; use teacher.states, or the same window"
    if lessons.attention and one.n_heads != other.n_heads:
        yield (
            f"teacher.attention: expected as many heads as the teacher's {other.n_heads}, got {one.n_heads}; set "
            f"model.heads={other.n_heads}, or use teacher.values with teacher.relation_heads, or teacher.states"
        )
    if lessons.values:
        yield from value_differences(lessons.relation_heads, one, other)


def value_differences(heads: int, one: Heads, other: Heads) -> Iterator[str]:
    if heads:
        channels = [mixer.n_kv_heads * mixer.head_channels for mixer in (one, other)]
        if any(n % heads for n in channels):
            yield f"teacher.relation_heads: expected a divisor of both {channels[0]} and {channels[1]} value channels"
    elif one.n_kv_heads != other.n_kv_heads:
        yield (
            f"teacher.values: expected as many value heads as the teacher's {other.n_kv_heads}, got {one.n_kv_heads}; "
            "set teacher.relation_heads to a divisor of both's channels"
        )


def with_widening(student: Transformer, width: int, seed: int) -> Transformer:
    """`student` with a matrix from its width to the teacher's beside it, where these differ: drawn by `seed`, of a
    deviation that keeps the size of states."""
    own = student.config.stack.width
    if own == width or WIDEN in student.heads:
        return student
    device = student.embedding.weight.device
    widen = Linear(own, width)
    widen.weight.data.normal_(0.0, own**-0.5, generator=generator_for(seed, WIDEN))
    student.heads[WIDEN] = widen.to(device)
    return student


def widened(student: Transformer, states: Tensor) -> Tensor:
    """States [B, T, D] in the teacher's width."""
    found: Tensor = student.heads[WIDEN](states) if WIDEN in student.heads else states
    return found


def write_widening(student: Transformer, folder: Path) -> None:
    """Into a checkpoint. Raises NonFiniteError rather than write a weight that is not finite."""
    if WIDEN in student.heads:
        state = {"weight": student.heads[WIDEN].get_parameter("weight").detach().cpu()}
        refuse_non_finite({f"heads.{WIDEN}.weight": state["weight"]})
        write_safetensors(folder / FILE, state)


def read_widening(student: Transformer, folder: Path, width: int) -> Transformer:
    """A checkpoint's student with the matrix beside it. Raises CheckpointError where it is missing or of another
    shape."""
    student = with_widening(student, width, 0)
    if WIDEN not in student.heads:
        return student
    path, weight = folder / FILE, student.heads[WIDEN].get_parameter("weight")
    if not path.is_file():
        raise CheckpointError(f"{path}: expected the matrix to the teacher's width, found none; begin another run.dir")
    with SafetensorsFile(path) as file:
        found = file.entries.get("weight")
        if found is None or tuple(found.shape) != tuple(weight.shape):
            raise CheckpointError(f"{path}: expected a matrix of shape {list(weight.shape)}, got another")
        weight.data.copy_(file.read("weight"))
    return student
