"""One training loop for both stages: epochs, evaluation, early stop, resume.

A ``Task`` knows how to run an epoch and how to evaluate; the loop knows when to stop, what to keep
and what to write down. All state that a run depends on is in the task's tree of arrays and in
``Course``; both are saved together, so a resumed run repeats the unbroken one.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from pdrec_jax.checkpoints import Store
from pdrec_jax.errors import UserError
from pdrec_jax.metric_log import MetricLog

Tree = Any


class Task(Protocol):
    """What the loop trains."""

    @property
    def name(self) -> str:
        """Name of the stage, in the log."""

    @property
    def steps(self) -> int:
        """Gradient steps an epoch."""

    def initial(self) -> Tree:
        """Returns the state before the first epoch; ``state["params"]`` is what is kept."""

    def run_epoch(self, state: Tree, epoch: int, advance: Any) -> tuple[Tree, dict[str, float]]:
        """Trains epoch ``epoch`` (from 1), donating ``state``; calls ``advance(steps)`` as it goes.

        Returns the new state, and at least ``loss`` and ``learning_rate``.
        """

    def evaluate(self, params: Tree) -> float:
        """Returns the metric that chooses the epoch, NDCG@10."""


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """When to evaluate, stop and save.

    Attributes:
      epochs: at most.
      patience: evaluations without a new best before stopping.
      first_evaluation: the epoch of the first evaluation.
      min_epochs: no early stop before this epoch.
      evaluate_every: epochs between evaluations.
      save_seconds: wall time between saves of the state.
    """

    epochs: int
    patience: int
    first_evaluation: int = 1
    min_epochs: int = 0
    evaluate_every: int = 1
    save_seconds: float = 300.0


@dataclasses.dataclass(frozen=True)
class Course:
    """How far a run has come.

    Attributes:
      epoch: epochs done.
      best_epoch: the epoch whose parameters are kept, 0 before the first evaluation.
      best: its metric.
      stale: evaluations since.
      seconds: wall time spent in epochs and evaluations.
    """

    epoch: int = 0
    best_epoch: int = 0
    best: float = -1.0
    stale: int = 0
    seconds: float = 0.0

    def stopped(self, settings: LoopSettings) -> bool:
        """Whether training is over."""
        enough = self.stale >= settings.patience and self.epoch >= settings.min_epochs
        return self.epoch >= settings.epochs or enough


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The outcome of ``fit``: the best parameters and the course of the run."""

    params: Tree
    course: Course


def _evaluates(epoch: int, settings: LoopSettings) -> bool:
    since = epoch - settings.first_evaluation
    # A run too short for its first evaluation still needs a best epoch.
    return (since >= 0 and since % settings.evaluate_every == 0) or epoch == settings.epochs


class Run:
    """The training of one task between its epochs: what is restored, kept, written down and saved.

    Order in an epoch: train, evaluate, keep the best, write the log line, save. A kill between any
    two of them repeats the epoch from the last save; the log is rewound to it first.

    Args:
      task: what to train.
      settings: when to stop.
      store: slot ``state`` while training, slot ``best`` once it is over.
      log: gets one line an epoch.

    Attributes:
      state: of the last epoch, whose arrays the next epoch may take.
      course: how far the run has come.
      shown: what a progress bar shows beside its count.
    """

    def __init__(self, task: Task, settings: LoopSettings, store: Store, log: MetricLog):
        self.task, self.settings, self.store, self.log = task, settings, store, log
        self.shown: dict[str, float] = {}
        self.finished = store.step("best") is not None
        if self.finished:
            like = jax.eval_shape(lambda: task.initial()["params"])
            self._best, meta = store.restore("best", like)
            self.course = Course(**meta)
            store.delete("state")  # left by a kill right after the last save
            return
        if store.step("state") is None:
            self.state, self.course = task.initial(), Course()
            # The epoch donates the state, so what is kept must be a copy.
            self._best = jax.tree.map(jnp.copy, self.state["params"])
        else:
            # Only shapes, since two states at once may be more than fits.
            like = jax.eval_shape(task.initial)
            saved, meta = store.restore("state", {"state": like, "best": like["params"]})
            self.state, self._best, self.course = saved["state"], saved["best"], Course(**meta)
        log.rewind(task.name, self.course.epoch)
        self._saved_at = time.monotonic()

    @property
    def fitted(self) -> Fitted:
        """The outcome so far."""
        return Fitted(self._best, self.course)

    def measure(self, state: Tree, values: dict[str, float]) -> None:
        """Adds the metric ``ndcg`` to an epoch's values, where the epoch is to be evaluated."""
        due = _evaluates(self.course.epoch + 1, self.settings)
        if due and math.isfinite(values["loss"]):
            values["ndcg"] = self.task.evaluate(state["params"])

    def settle(self, state: Tree, values: dict[str, float], seconds: float) -> None:
        """Takes in an epoch that was trained and measured.

        Args:
          state: after the epoch.
          values: from the task and ``measure``, for the log.
          seconds: that the epoch took.

        Raises:
          UserError: a loss that is not finite.
        """
        settings, course = self.settings, self.course
        epoch, self.state = course.epoch + 1, state
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"{self.task.name}: the loss is {values['loss']} in epoch {epoch} at learning rate "
                f"{values['learning_rate']:.3g}; the last good state is that of epoch "
                f"{self.store.step('state') or 0} in {self.store.directory}. A smaller learning "
                "rate usually helps"
            )
        self.shown = {"epoch": epoch, "loss": values["loss"]}
        if "ndcg" in values:
            if values["ndcg"] > course.best:
                self._best = jax.tree.map(jnp.copy, state["params"])
                course = dataclasses.replace(course, best=values["ndcg"], best_epoch=epoch, stale=0)
            else:
                course = dataclasses.replace(course, stale=course.stale + 1)
            self.shown |= {"ndcg": values["ndcg"], "best": course.best}
        self.course = dataclasses.replace(course, epoch=epoch, seconds=course.seconds + seconds)
        self.log.write(self.task.name, epoch, **values, seconds=round(seconds, 3))
        if time.monotonic() - self._saved_at >= settings.save_seconds:
            tree = {"state": state, "best": self._best}
            self.store.save("state", epoch, tree, dataclasses.asdict(self.course))
            self._saved_at = time.monotonic()

    def close_if_stopped(self) -> bool:
        """Saves the best parameters once training is over; returns whether it is."""
        if not self.finished and self.course.stopped(self.settings):
            meta = dataclasses.asdict(self.course)
            self.store.save("best", self.course.best_epoch, self._best, meta)
            self.store.delete("state")
            self.finished, self.state = True, None
        return self.finished


def fit(task: Task, settings: LoopSettings, store: Store, log: MetricLog) -> Fitted:
    """Trains until the metric stops rising, or continues a run that was cut short.

    Args:
      task: what to train.
      settings: when to stop.
      store: see ``Run``.
      log: gets one line an epoch.

    Returns:
      The parameters of the best epoch.

    Raises:
      UserError: a loss that is not finite.
    """
    run = Run(task, settings, store, log)
    if run.finished:
        return run.fitted
    total, initial = settings.epochs * task.steps, run.course.epoch * task.steps
    with log.progress(task.name, total, "step", initial=initial) as bar:
        while not run.close_if_stopped():
            epoch, begun, shown = run.course.epoch + 1, time.monotonic(), run.shown
            state, values = task.run_epoch(
                run.state, epoch, lambda steps, shown=shown: bar.update(steps, **shown)
            )
            run.measure(state, values)
            run.settle(state, values, time.monotonic() - begun)
            bar.update(0, **run.shown)
    return run.fitted


# From the tasks of a group, their states and the epoch to the new states and values.
RunEpochs = Callable[[Sequence[Any], Sequence[Tree], int], list[tuple[Tree, dict[str, float]]]]


def fit_together(
    runs: Sequence[Run], label: str, run_epochs: RunEpochs | None = None, workers: int = 1
) -> None:
    """Trains several runs side by side, each to its own end, as ``fit`` would one after another.

    A run that stops leaves the group at once, and its store is then what ``fit`` leaves. Runs that
    a kill has left at different epochs first come level: those that are behind go alone.

    Args:
      runs: of tasks with the same number of steps; finished ones are passed over.
      label: for the progress bar.
      run_epochs: trains one epoch of a group; None lets each task train its own.
      workers: threads that train and evaluate tasks at the same time.

    Raises:
      UserError: a loss that is not finite.
    """

    def measure(run: Run, state: Tree, values: dict[str, float]) -> tuple[Tree, dict[str, float]]:
        run.measure(state, values)
        return state, values

    def alone(run: Run) -> tuple[Tree, dict[str, float]]:
        return measure(run, *run.task.run_epoch(run.state, run.course.epoch + 1, lambda _: None))

    total = sum(run.settings.epochs * run.task.steps for run in runs)
    done = sum(run.course.epoch * run.task.steps for run in runs)
    compiled = False
    with (
        runs[0].log.progress(label, total, "step", initial=done) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        while going := [run for run in runs if not run.close_if_stopped()]:
            epoch = 1 + min(run.course.epoch for run in going)
            group = [run for run in going if run.course.epoch + 1 == epoch]
            begun = time.monotonic()
            # In the first epoch the first task compiles for all: two at a time would do it twice.
            each = pool.map if compiled else map
            if run_epochs is None:
                trained = list(each(alone, group))
            else:
                states = [run.state for run in group]
                raw = run_epochs([run.task for run in group], states, epoch)
                trained = list(each(measure, group, *zip(*raw, strict=True)))
            compiled = True
            share = (time.monotonic() - begun) / len(group)
            for run, (state, values) in zip(group, trained, strict=True):
                run.settle(state, values, share)
                bar.update(run.task.steps, **run.shown)
