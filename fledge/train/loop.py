"""The training loop: one for every recipe.

A step draws batch `drawn`, accumulates exact gradients over micro-batches, clips, updates. Everything that decides the
next step is in `State`, so a run that was stopped goes on to the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge import device as devices
from fledge.batch import Batch, Loss, slice_rows
from fledge.config import to_dict
from fledge.device import Device
from fledge.errors import CheckpointError, ConfigError, DataError, FledgeError, Interrupted, NonFiniteError, SpikeError
from fledge.log import Progress, RunLog, say, warn
from fledge.model.count import flops_per_token
from fledge.model.folder import load_model
from fledge.model.transformer import Transformer
from fledge.nn.norm import BatchNorm
from fledge.optim.schedule import rate_share
from fledge.parallel.group import ALONE, Group, lost_another
from fledge.train import checkpointing, patience
from fledge.train.checkpointing import State
from fledge.train.clock import clock_of
from fledge.train.compiled import FirstStep, compile_training
from fledge.train.config import TrainConfig
from fledge.train.dropout import draws_dropout, dropout_seed
from fledge.train.faults import Faults
from fledge.train.optimizer import new_average, new_optimizer
from fledge.train.parallel.many import parallelise
from fledge.train.precision import Precision
from fledge.train.recipe import Hook, Recipe
from fledge.train.restore import SavedState
from fledge.train.saver import Job, Saver
from fledge.train.signals import StopRequest
from fledge.train.spikes import Spikes
from fledge.train.watch import Watch


@dataclass
class Run:
    """One training run in its folder. The caller holds the folder's lock."""

    folder: Path
    config: Any
    train: TrainConfig
    device: Device
    recipe: Recipe
    log: RunLog
    hooks: Sequence[Hook] = ()
    loaded: Path | None = None
    """The checkpoint that `recipe.model` was loaded from, when resuming."""
    group: Group = ALONE
    """The processes that share it."""
    load_at: Callable[[Path], Transformer] = load_model
    """What reads the model of a checkpoint, in a process that holds it whole."""

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def train(run: Run, state: State) -> dict[str, float]:
    """Take `run` from `state` to its last step; gives `val_loss`, `steps`, `tokens`, `seconds`, `cpu_seconds`.

    Raises, after saving, Interrupted when a signal (or `stop_after_steps`) asks to stop, DataError when a batch can't
    be read, NonFiniteError and SpikeError by policy; and CheckpointError when a checkpoint can't be written.
    """
    with StopRequest(launched=not run.group.alone) as stop:
        return Loop(run, state, stop).to_the_end()


class Loop:
    """The moving parts of one process's share of a run."""

    def __init__(self, run: Run, state: State, stop: StopRequest):
        self.run, self.state, self.stop, self.config = run, state, stop, run.train
        c = self.config
        self.parallel = parallelise(run.recipe, c, run.group, run.device.device)
        self.model = run.recipe.model.train().checkpoint_blocks(c.checkpoint_blocks)
        self.parallel.shard()
        if run.loaded is not None:
            self.parallel.restore(run.loaded)
        self.optimizer = new_optimizer(self.model, c, self.parallel.groups(c.groups), self.parallel.part)
        self.average = new_average(self.model, c)
        if run.loaded is not None:
            with SavedState(run.loaded, self.parallel.part) as saved:
                self.optimizer.load(saved)
                if self.average is not None:
                    self.average.load(saved)
        schedule = c.rate_schedule()
        self.rate_at: Callable[[int], float] = lambda step: c.learning_rate * rate_share(step, schedule)
        self.precision = Precision(c.precision, run.device.device, state, c.loss_scale, c.loss_scale_steps)
        self.spikes = Spikes(state, c.spike_window, c.spike_threshold)
        self.watch = Watch(self.model, c.watch_every_steps, run.log, units=c.compile == "off")
        notice = "" if c.compile == "off" else compile_training(self.model, c.compile, run.device.device)
        self.first_step = FirstStep(notice)
        self.faults = Faults()
        self.clock = clock_of(run.device.device)
        self.began, self.cpu_began = time.monotonic(), time.process_time()
        self.seconds_before, self.cpu_before = state.seconds, state.cpu_seconds
        self.peak = 0.0
        self.flops = 0.0
        self.metrics: dict[str, float] = {}  # of the last step
        saved_step = state.step if run.loaded is not None else -1
        self.saver = Saver(run.checkpoints, c, run.log, self.faults, self.clock, saved_step, self.parallel.ranks)

    def to_the_end(self) -> dict[str, float]:
        state, config = self.state, self.config
        self.announce()
        if self.run.group.rank == 0:
            checkpointing.mend_best(self.run.checkpoints, state)
        progress = Progress("step", config.steps, state.step)
        if state.step == 0:
            self.call_hooks(progress)
        try:
            self.take_steps(progress)
            self.save()
            self.leave_if_asked()
        except BaseException as error:
            self.saver.wait_after_failure(one_is_gone=lost_another(error))
            raise
        finally:
            progress.close()
        return self.finish()

    def take_steps(self, progress: Progress) -> None:
        while self.state.step < self.config.steps and not patience.is_out(self.state, self.config):
            self.leave_if_asked()
            try:
                figures = self.one_step()
            except (DataError, NonFiniteError, SpikeError) as error:
                self.keep_what_was_learned(error)
                raise
            if figures is None:
                continue
            self.record(figures, progress)
            self.saver.settle(self.state)
            self.after_step(progress)

    def keep_what_was_learned(self, error: FledgeError) -> None:
        """Save before the `error` of a batch ends the run: weights, moments and counters are those of before it."""
        moved = not isinstance(error, DataError) and any(isinstance(m, BatchNorm) for m in self.model.modules())
        if not self.state.step or moved or not self.all_met(error):
            return
        try:
            self.save()
        except (CheckpointError, NonFiniteError) as lost:
            warn(f"what was learned since the last checkpoint is lost: {lost}")

    def all_met(self, error: FledgeError) -> bool:
        """Whether every process ends with such an error of this batch: a save needs all of them."""
        ranks = self.parallel.ranks.behind(f"{type(error).__name__}/{self.state.drawn}")
        ranks.hurry()
        try:
            ranks.exchange(None)
        except CheckpointError:
            return False
        return True

    def leave_if_asked(self) -> None:
        """Save and raise Interrupted when a signal asks for it, or stop_after_steps short of the end."""
        step, limit = self.state.step, self.config.stop_after_steps
        asked = self.run.group.most(self.stop.asked)  # of all processes, so that they save the same step
        if asked or (0 < limit <= step < self.config.steps and not patience.is_out(self.state, self.config)):
            self.save()
            reason = self.stop.name or ("a signal" if asked else f"train.stop_after_steps={limit}")
            without = "" if asked else " without train.stop_after_steps"
            raise Interrupted(f"{reason}: saved at step {step}; the same command{without} continues")

    def announce(self) -> None:
        run, state = self.run, self.state
        computing = replace(run.device, dtype=self.precision.dtype)
        here = devices.matmul_peak(computing, size=1024 if run.device.device.type == "cpu" else 4096)
        [self.peak] = run.group.summed([here])
        self.flops = flops_per_token(run.recipe.model.config, self.row_tokens())
        facts = devices.facts(run.device)
        different = {k: v for k, v in facts.items() if state.facts and state.facts.get(k) != v}
        if different:
            warn(f"resuming on another machine setting ({different}); the bits may differ from an uninterrupted run")
        state.facts = facts
        n_parameters = self.parallel.n_parameters
        say(
            f"{n_parameters:,} parameters · {self.config.steps} steps of {self.config.rows} rows · "
            f"{run.device.device} × {run.device.threads} threads · matmul peak {self.peak / 1e9:.0f} GFLOP/s"
        )
        if self.config.checkpoint_async:
            self.saver.announce(self.parallel.contents(run.recipe, self.moments()).n_bytes)
        run.log.write("resume" if state.step else "start", step=state.step, steps=self.config.steps,
                      config=to_dict(run.config), facts=facts, parameters=n_parameters,
                      matmul_peak_flops=self.peak, flops_per_token=self.flops)  # fmt: skip

    def row_tokens(self) -> int:
        return self.config.row_tokens or self.run.recipe.model.config.context_tokens

    def one_step(self) -> dict[str, float] | None:
        """Draw a batch and update; None if the batch was left out."""
        state, config, recipe, clock = self.state, self.config, self.run.recipe, self.clock
        began = time.monotonic()
        clock.begin_step(state.step)
        with clock("data"):
            batch = self.next_batch()
        self.watch.begin(state.step + 1)
        terms = self.accumulate(batch, self.parallel.weights(recipe, batch))
        loss_value = sum(terms.values())
        if self.faults.due("nan_loss", state.drawn):
            loss_value = math.nan
        with clock("optimizer"):
            self.precision.unscale(self.optimizer.parameters)
            self.watch.gradients()
            norm = self.optimizer.clip(config.clip_norm, self.parallel.norm)
        if self.faults.due("spike", state.drawn):
            loss_value *= 100.0
        if self.faults.due("sleep", state.drawn):
            time.sleep(10)
        accepted = self.accepted(batch, loss_value, norm)
        state.drawn += 1  # not before: where policy ends the run, this batch is the next
        if not accepted:
            self.optimizer.zero_grad()
            self.watch.forget()
            return None
        self.watch.weights()
        rate = self.rate_at(state.step)
        state.step += 1
        with clock("optimizer"):
            self.optimizer.step(rate)
            self.parallel.stepped()
            self.optimizer.zero_grad()
            if self.average is not None:
                self.average.update(state.step)
        self.watch.end(state.step)
        clock.end_step()
        n_tokens = batch.n_tokens
        state.tokens += n_tokens
        seconds = time.monotonic() - began
        self.first_step.done(seconds)
        return {
            "loss": loss_value,
            **({f"loss_{name}": value for name, value in terms.items()} if len(terms) > 1 else {}),
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens": n_tokens,
            "seconds": seconds,
        }

    def next_batch(self) -> Batch:
        """The next batch. Where another process can't read it, this one saves and stops with it."""
        group = self.run.group
        try:
            batch = self.run.recipe.batch(self.state.drawn)
        except DataError:
            group.most(1)
            raise
        if group.most(0):
            raise DataError(f"batch {self.state.drawn}: another process can't read it")
        return batch

    def accumulate(self, batch: Batch, weights: dict[str, float]) -> dict[str, float]:
        """Gradients of the global batch's loss, by micro-batches; gives the loss by terms, which add up to it."""
        device, n_rows = self.run.device.device, self.config.rows
        rows = self.parallel.rows(n_rows)
        micro_rows = int(self.config.micro_rows or len(rows))  # auto was resolved before the run began
        dropped = draws_dropout(self.model, self.config)
        totals: dict[str, float] = {}
        coefficients: dict[str, float] = {}
        metrics: dict[str, tuple[float, float]] = {}

        def micro(start: int) -> Batch:
            part = batch if micro_rows == n_rows else slice_rows(batch, start, start + micro_rows)
            if dropped:
                torch.manual_seed(dropout_seed(self.config.seed, self.state.drawn, start, self.parallel.stage))
            return part if device.type == "cpu" else part.to(device)

        def objective(part: Batch) -> Tensor | None:
            with self.clock("forward"), self.precision.computing():
                loss = self.run.recipe.loss(part)
            self.check_split(loss, micro_rows, n_rows)
            asked = sum(
                term.coefficient / weights[name] * term.total for name, term in loss.terms.items() if weights[name] > 0
            )
            for name, term in loss.terms.items():
                totals[name] = totals.get(name, 0.0) + float(term.total.detach())
                coefficients[name] = term.coefficient
            for name, (total, weight) in loss.metrics.items():
                before = metrics.get(name, (0.0, 0.0))
                metrics[name] = (before[0] + total, before[1] + weight)
            return self.precision.scaled(asked) if isinstance(asked, Tensor) and asked.requires_grad else None

        self.parallel.passes(range(rows.start, rows.stop, micro_rows), micro, objective, self.clock)
        with self.clock("communication"):
            self.parallel.reduce_gradients()
            found = {n: coefficients[n] * t / weights[n] for n, t in totals.items() if weights[n] > 0}
            self.metrics = self.parallel.means(metrics)
            return self.parallel.terms(found, [name for name in weights if weights[name] > 0])

    def check_split(self, loss: Loss, micro_rows: int, rows: int) -> None:
        coupled = [name for name, term in loss.terms.items() if term.coupled]
        if coupled and micro_rows != rows:
            raise ConfigError(f"train.micro_rows: loss term {coupled[0]!r} couples its batch; set micro_rows=0")

    def accepted(self, batch: Batch, loss: float, norm: float) -> bool:
        """Whether a step may move the weights; those that may not are counted, or stop the run by policy uncounted."""
        config, state = self.config, self.state
        found = f"loss {loss}, gradient norm {norm}"
        if not (math.isfinite(loss) and math.isfinite(norm)):
            if self.precision.backs_off():
                self.note("overflow", batch, loss_scale=state.loss_scale)
                return False
            self.note("non_finite", batch)
            self.leave_out(NonFiniteError, "non_finite", config.non_finite, state.skipped + 1, batch, found)
            state.skipped += 1
            return False
        spike = "" if config.spike == "off" else self.spikes.found(loss, norm)
        skipped = bool(spike) and config.spike == "skip"
        if spike:
            self.note("spike", batch, loss=loss, gradient_norm=norm)
            self.leave_out(SpikeError, "spike", config.spike, state.skipped_spikes + 1, batch, spike)
            state.spikes += 1
            state.skipped_spikes += skipped
        self.precision.held()
        if config.spike != "off" and not skipped:
            self.spikes.take(loss, norm)
        return not skipped

    def note(self, kind: str, batch: Batch, **more: float) -> None:
        state = self.state
        self.run.log.write(kind, step=state.step, batch=state.drawn, samples=list(batch.sample_ids), **more)

    def leave_out(self, error: type[FledgeError], key: str, policy: str, count: int, batch: Batch, found: str) -> None:
        """Say what was met and what is done about it. Raises `error` by policy, or above train.max_skipped."""
        samples = ", ".join(batch.sample_ids[:8]) or "unnamed"
        what = f"step {self.state.step}, batch {self.state.drawn} (samples {samples}): {found}"
        if policy == "stop":
            raise error(f"{what}; no update was made. Look at these samples, or set train.{key}=skip")
        if policy == "warn":
            warn(what)
            return
        warn(f"{what}; skipped ({count} of at most {self.config.max_skipped})")
        if count > self.config.max_skipped:
            raise error(f"{what}; more than train.max_skipped={self.config.max_skipped} batches were skipped")

    def record(self, figures: dict[str, float], progress: Progress) -> None:
        state = self.state
        rate = figures["tokens"] / max(1e-9, figures["seconds"])
        mfu = rate * self.flops / self.peak
        if state.step % self.config.log_every_steps == 0 or state.step == self.config.steps:
            losses = {name: figures[name] for name in figures if name.startswith("loss")} | self.metrics
            self.run.log.write("step", step=state.step, **losses, learning_rate=figures["learning_rate"],
                               gradient_norm=figures["gradient_norm"], tokens=state.tokens,
                               tokens_per_second=round(rate, 1), mfu=round(mfu, 4),
                               seconds=round(self.seconds(), 4), skipped=state.skipped,
                               times=self.clock.taken(), **self.counts())  # fmt: skip
        progress.update(state.step, loss=f"{figures['loss']:.3f}", tokens=f"{rate:,.0f}/s", peak=f"{100 * mfu:.0f} %")

    def counts(self) -> dict[str, float]:
        """What was left out or met so far, where it is looked for."""
        state, counts = self.state, dict[str, float]()
        if self.precision.scales:
            counts |= {"overflows": state.overflows, "loss_scale": state.loss_scale}
        return counts | ({"spikes": state.spikes} if self.config.spike != "off" else {})

    def after_step(self, progress: Progress) -> None:
        state, config = self.state, self.config
        last = state.step == config.steps
        improved = False
        if config.eval_every_steps and state.step % config.eval_every_steps == 0 and not last:
            improved = self.validate(config.eval_rows, progress)
        self.call_hooks(progress)
        if improved or (config.save_every_steps and state.step % config.save_every_steps == 0):
            best = state.best_val_loss if improved else None
            self.hand_over(self.saver.save_on_the_way, best)

    def validate(self, rows: int, progress: Progress | None) -> bool:
        """Log a validation; whether it is the best so far."""
        figures = self.evaluated(rows)
        self.run.log.write("evaluate", step=self.state.step, **figures, times=self.clock.taken())
        if progress is not None:
            progress.note(f"step {self.state.step}: validation loss {figures['val_loss']:.4f}")
        state, found = self.state, figures["val_loss"]
        if not patience.note(state, found, self.config.min_delta):
            return False
        state.best_val_loss, state.best_step = found, state.step
        return True

    def evaluated(self, rows: int) -> dict[str, float]:
        """The validation of the weights and, as `ema_val_loss`, of their running mean."""
        figures = self.validated(rows)
        if self.average is not None:
            with self.average.in_place():
                figures["ema_val_loss"] = self.validated(rows)["val_loss"]
        return figures

    def validated(self, rows: int) -> dict[str, float]:
        self.model.eval()
        try:
            with self.clock("evaluation"), self.precision.computing():
                return self.parallel.validated(self.run.recipe, rows)
        finally:
            self.model.train()

    def call_hooks(self, progress: Progress) -> None:
        for hook in self.run.hooks:
            if hook.every_steps and self.state.step % hook.every_steps == 0:
                self.model.eval()
                try:
                    with self.parallel.whole_model(self.run.recipe) as here:
                        if here or hook.everywhere:
                            hook.act(self.state.step)
                finally:
                    self.model.train()

    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.began

    def cpu_seconds(self) -> float:
        """Of all processes, which ask together."""
        return self.cpu_before + self.run.group.summed([time.process_time() - self.cpu_began])[0]

    def save(self) -> None:
        """Write the state of now, if it isn't written, and return when it is on the disk."""
        self.hand_over(self.saver.save)

    def hand_over(self, write: Callable[[Job], None], best: float | None = None) -> None:
        """`write` the state of now, every process its share."""
        state = self.state
        state.seconds = self.seconds()
        state.cpu_seconds = self.cpu_seconds()
        state.data_digest, state.config = self.run.recipe.data_digest, to_dict(self.run.config)
        write(Job(state, self.parallel.contents(self.run.recipe, self.moments()), best))

    def moments(self) -> dict[str, Tensor]:
        return self.optimizer.state() | (self.average.state() if self.average is not None else {})

    def finish(self) -> dict[str, float]:
        figures = self.evaluated(0)
        self.leave_if_asked()
        if self.config.keeps_best:
            figures = self.better_of(figures)
            self.leave_if_asked()
        if self.average is not None and self.config.publish_ema:
            self.average.swap()  # for good: the checkpoint of the last step has both
            figures |= {"last_val_loss": figures["val_loss"], "val_loss": figures["ema_val_loss"]}
        result = {
            **figures,
            "steps": self.state.step,
            "tokens": self.state.tokens,
            "seconds": round(self.seconds(), 3),
            "cpu_seconds": round(self.cpu_seconds(), 3),
            "matmul_peak_flops": round(self.peak),
        }
        self.run.log.write("end", **result, times=self.clock.taken())
        self.parallel.leave_whole(self.run.recipe)
        return result

    def better_of(self, last: dict[str, float]) -> dict[str, float]:
        """Leave the model with the better of its last weights and those of the best validation on the way, by the
        whole of the held-out data; gives its validation, and which it is."""
        state = self.state
        early = patience.is_out(state, self.config)
        best, chosen, figures = state.best_step, state.step, last
        if best is not None and best != state.step:
            self.go_back(best)
            figures, chosen = self.evaluated(0), best
            if not figures["val_loss"] <= last["val_loss"]:
                self.go_back(state.step)
                figures, chosen = last, state.step
        if early:
            say(f"stopped early at step {state.step}: {state.waited} validations without a better one")
            self.run.log.write("early_stop", step=state.step, waited=state.waited, best_step=best,
                               best_val_loss=state.best_val_loss, published_step=chosen)  # fmt: skip
        say(f"published are the weights of step {chosen}, validation loss {figures['val_loss']:.4f}")
        more = {"published_step": chosen, "last_val_loss": last["val_loss"], "stopped_early": early}
        return {**figures, **more}

    def go_back(self, step: int) -> None:
        """The weights of the checkpoint of `step`. Raises CheckpointError where it is damaged or gone."""
        folder = self.run.checkpoints / checkpointing.folder_name(step)
        checkpointing.read_state(folder, self.parallel.ranks)
        self.parallel.go_back(folder, self.run.load_at)
