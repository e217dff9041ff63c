"""`fledge distill`: a student that learns from text and from what a teacher says of the same text."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.batch import Batch, Loss, Term
from fledge.compress.distill import Lesson, hidden_distance, lesson, teacher_nats
from fledge.compress.inner import Heard, InnerLessons, there
from fledge.errors import CheckpointError, ConfigError
from fledge.lineage import artefact_digest, fsync_folder
from fledge.model.folder import find_model, load_model, read_config
from fledge.model.safetensors_file import SafetensorsFile, write_safetensors
from fledge.model.transformer import Transformer
from fledge.recipes.distill_config import DistillConfig, TeacherConfig
from fledge.recipes.distill_inner import inner_lessons, read_widening, widened, with_widening, write_widening
from fledge.recipes.language import LanguageRecipe
from fledge.recipes.masked import MaskedRecipe
from fledge.recipes.objective import objective_tokenizer
from fledge.recipes.own_text import OWN, OwnText, log_of, own_text
from fledge.recipes.pretrain import Beside, pretrain
from fledge.text.tokenizer import Tokenizer

INNER = ("attention", "values", "states")
TEACHER = "teacher"  # of the run folder: what the teacher said, by what it was asked


@dataclass
class DistillRecipe(MaskedRecipe):
    """A student beside `teacher`. `inner`: the recipe of the objective, whose batches and validation these are."""

    teacher: Transformer | None = None
    lessons: TeacherConfig = TeacherConfig()
    said: Path | None = None
    """Folder of what the teacher said; None: it is asked each time."""
    masks: bool = False
    inner: InnerLessons | None = None
    own: OwnText | None = None
    """What the student writes itself, in its share of the batches."""

    def batch(self, index: int) -> Batch:
        return self.source.batch(index) if self.own is None or not self.own.due(index) else self.own.batch(index)

    def weights(self, batch: Batch) -> dict[str, float]:
        learnt, every = float(batch.weight.sum()), float(there(batch.tokens).sum())
        return {name: every if name in INNER else learnt for name in self.terms(batch)}

    def terms(self, batch: Batch) -> dict[str, float]:
        """Coefficient of each term that counts; not the objective's own where the student wrote the text."""
        own = "masked" if self.masks else "nats"
        lessons = self.lessons
        found = {
            own: 0.0 if OWN in batch.columns else 1 - lessons.share,
            TEACHER: lessons.share,
            "hidden": lessons.hidden,
        }
        found |= {name: getattr(lessons, name) for name in INNER}
        return {name: share for name, share in found.items() if share > 0}

    def loss(self, batch: Batch) -> Loss:
        learnt = batch.weight > 0
        weight, targets = batch.weight[learnt], batch.targets[learnt]
        with self.listening(self.model, 0) as mine:
            hidden = self.model.hidden(batch.tokens, batch.layout)[learnt]
        logits = self.model.logits(hidden).float()
        taught, states, theirs = self.taught(batch)
        totals: dict[str, Tensor] = {}
        if self.inner is not None and mine is not None and theirs is not None:
            totals = self.inner.terms(mine, theirs, batch.tokens, partial(widened, self.model))
        shares, whole = self.terms(batch), self.weights(batch)
        for name in shares:
            if name in totals:
                continue
            if name == TEACHER:
                assert taught is not None
                known = logits[:, : taught.log_p.shape[-1]] if taught.ids is None else logits
                totals[name] = teacher_nats(known, taught, weight, self.lessons.temperature, self.lessons.beta)
            elif name == "hidden":
                assert states is not None
                totals[name] = hidden_distance(hidden, states, weight)
            else:
                totals[name] = (weight * F.cross_entropy(logits, targets, reduction="none")).sum()
        return Loss({name: Term(totals[name], whole[name], coefficient=share) for name, share in shares.items()})

    def listening(self, model: Transformer, side: int) -> AbstractContextManager[Heard | None]:
        """What the layers do in a pass inside, where it is looked at."""
        return nullcontext() if self.inner is None else self.inner.listening(model, side)

    @torch.no_grad()
    def taught(self, batch: Batch) -> tuple[Lesson | None, Tensor | None, Heard | None]:
        """What the teacher says at the places that are trained on, and its last states there and what its layers do
        where they are looked at."""
        shares, learnt = self.terms(batch), batch.weight > 0
        kept = self.said is not None and OWN not in batch.columns  # nobody asks of own text again
        path = self.said / f"{asked(batch)}.safetensors" if self.said is not None and kept else None
        if path is not None and path.is_file() and "hidden" not in shares and self.inner is None:
            return read_lesson(path, batch.weight.device), None, None
        assert self.teacher is not None
        teacher = self.teacher.to(batch.weight.device)  # the student was moved after it was asked for
        with self.listening(teacher, 1) as heard:
            states = teacher.hidden(batch.tokens, batch.layout)[learnt]
        taught = None
        if TEACHER in shares:
            logits = teacher.logits(states)[:, : self.tokenizer.vocab_size]
            taught = lesson(logits, self.lessons.temperature, self.lessons.top_k)
            if path is not None and taught.ids is not None:  # else it is all that the teacher says, and not kept
                write_lesson(path, taught)
        return taught, states if "hidden" in shares else None, heard

    def measured(self, held_out: Sequence[Batch], rows: int) -> dict[str, float]:
        kind = MaskedRecipe if self.masks else LanguageRecipe
        return kind.measured(self, held_out, rows)

    def sums(self, batch: Batch) -> list[float]:
        return MaskedRecipe.sums(self, batch) if self.masks else LanguageRecipe.sums(self, batch)

    def save(self, folder: Path) -> None:
        """For a checkpoint: with what stands beside the student."""
        self.export(folder)
        write_widening(self.model, folder)

    def export(self, folder: Path) -> None:
        super().save(folder)


def distill(config: DistillConfig) -> dict[str, Any]:
    """Train the student and publish `run.dir`/model. Gives the same figures as `pretrain`.

    Raises ConfigError for an objective or a teacher that can't teach this student.
    """
    if not config.teacher.path:
        raise ConfigError("teacher.path: expected a model folder; set teacher.path=…")
    if config.objective not in ("causal", "masked"):
        raise ConfigError(f"objective: expected causal or masked for a student, got {config.objective}")
    folder = find_model(config.teacher.path)

    def beside(recipe: LanguageRecipe) -> LanguageRecipe:
        device = recipe.model.embedding.weight.device
        teacher = load_model(folder, device).eval().requires_grad_(False)
        check_pair(recipe, teacher, Tokenizer.load(folder), config)
        inner = inner_lessons(config, recipe.model, teacher)
        if config.teacher.states:
            with_widening(recipe.model, teacher.config.stack.width, config.train.seed)
        said = said_folder(config, folder) if config.teacher.top_k else None
        fields = {name: value for name, value in vars(recipe).items() if name != "relation"}
        fields["parents"] = recipe.parents | {TEACHER: artefact_digest(folder)}
        masks = isinstance(recipe, MaskedRecipe)
        own = own_text(config, recipe.model, teacher, recipe.tokenizer, recipe.source, recipe.data_digest)
        return DistillRecipe(
            **fields, teacher=teacher, lessons=config.teacher, said=said, masks=masks, inner=inner, own=own
        )

    def read(student: Transformer, checkpoint: Path) -> Transformer:
        width = read_config(folder)[1].stack.width
        return read_widening(student, checkpoint, width) if config.teacher.states else student

    return pretrain(config, Beside(beside, artefact_digest(folder), read, log_of))


def check_pair(recipe: LanguageRecipe, teacher: Transformer, tokenizer: Tokenizer, config: DistillConfig) -> None:
    """Raises ConfigError unless the teacher can teach the student."""
    if objective_tokenizer(config, tokenizer).digest != recipe.tokenizer.digest:
        raise ConfigError(
            f"teacher.path: expected the student's tokenizer, got another; set "
            f"data.tokenizer={config.teacher.path}, or build the dataset with it"
        )
    student = recipe.model
    if (
        (teacher.decoder is None) != (student.decoder is None)
        or teacher.config.encoder is not None
        and (student.config.encoder is None)
    ):
        raise ConfigError(
            f"teacher.path: expected a model of the student's kind, got {teacher.config.family} for a "
            f"{student.config.family}"
        )
    if config.teacher.hidden and teacher.config.stack.width != student.config.stack.width:
        raise ConfigError(
            f"teacher.hidden: expected states of one width, got the teacher's {teacher.config.stack.width} and the "
            f"student's {student.config.stack.width}; set it to 0, or use teacher.states, which learns a matrix "
            "between the two"
        )
    if teacher.config.context_tokens < (config.train.row_tokens or student.config.context_tokens):
        raise ConfigError(
            f"train.row_tokens: expected at most the teacher's context of {teacher.config.context_tokens}; lower it"
        )


def said_folder(config: DistillConfig, teacher: Path) -> Path:
    """Where a teacher's lessons of this form are kept."""
    key = f"{artefact_digest(teacher)}-{config.teacher.temperature!r}-{config.teacher.top_k}"
    folder = Path(config.run.dir) / TEACHER / hashlib.sha256(key.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def asked(batch: Batch) -> str:
    """A name for what a teacher is asked: tokens, their places and documents, and the places that count."""
    tokens = batch.tokens
    digest = hashlib.sha256()
    for part in (tokens.ids, tokens.pos, tokens.doc, tokens.kind, batch.weight > 0):
        digest.update(b"-" if part is None else part.cpu().contiguous().numpy().tobytes())
        digest.update(str(None if part is None else tuple(part.shape)).encode())
    return digest.hexdigest()[:32]


def write_lesson(path: Path, taught: Lesson) -> None:
    """Whole or not at all. Raises CheckpointError."""
    assert taught.ids is not None
    scratch = path.with_name(f".new-{path.name}-{os.getpid()}")
    try:
        write_safetensors(scratch, {"log_p": taught.log_p.cpu(), "ids": taught.ids.to(torch.int32).cpu()})
        os.replace(scratch, path)
        fsync_folder(path.parent)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path}: can't be written ({error.strerror}); make room, or set teacher.top_k=0"
        ) from None


def read_lesson(path: Path, device: torch.device) -> Lesson:
    with SafetensorsFile(path) as file:
        return Lesson(file.read("log_p").to(device), file.read("ids").to(device, torch.int64))
