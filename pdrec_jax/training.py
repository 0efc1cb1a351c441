"""One training loop for both stages: epochs, evaluation, early stop, resume.

A ``Task`` knows how to run an epoch and how to evaluate; the loop knows when to stop, what to keep
and what to write down. All state that a run depends on is in the task's tree of arrays and in
``Course``; both are saved together, so a resumed run repeats the unbroken one.
"""

from __future__ import annotations

import dataclasses
import math
import time
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


def fit(task: Task, settings: LoopSettings, store: Store, log: MetricLog) -> Fitted:
    """Trains until the metric stops rising, or continues a run that was cut short.

    Order in an epoch: train, evaluate, keep the best, write the log line, save. A kill between any
    two of them repeats the epoch from the last save; the log is rewound to it first.

    Args:
      task: what to train.
      settings: when to stop.
      store: slot ``state`` while training, slot ``best`` once it is over.
      log: gets one line an epoch.

    Returns:
      The parameters of the best epoch.

    Raises:
      UserError: a loss that is not finite.
    """
    if store.step("best") is not None:
        like = jax.eval_shape(lambda: task.initial()["params"])
        params, meta = store.restore("best", like)
        store.delete("state")  # left by a kill right after the last save
        return Fitted(params, Course(**meta))

    state = task.initial()
    best = state["params"]
    course = Course()
    if store.step("state") is not None:
        saved, meta = store.restore("state", {"state": state, "best": best})
        state, best, course = saved["state"], saved["best"], Course(**meta)
    log.rewind(task.name, course.epoch)
    # The epoch donates the state, so what is kept must be a copy.
    best = jax.tree.map(jnp.copy, best)

    saved_at = time.monotonic()
    shown: dict[str, float] = {}
    total, initial = settings.epochs * task.steps, course.epoch * task.steps
    with log.progress(task.name, total, "step", initial=initial) as bar:
        while not course.stopped(settings):
            epoch, begun = course.epoch + 1, time.monotonic()
            state, values = task.run_epoch(
                state, epoch, lambda steps, shown=shown: bar.update(steps, **shown)
            )
            if not math.isfinite(values["loss"]):
                raise UserError(
                    f"{task.name}: the loss is {values['loss']} in epoch {epoch} at learning rate "
                    f"{values['learning_rate']:.3g}; the last good state is that of epoch "
                    f"{store.step('state') or 0} in {store.directory}. A smaller learning rate "
                    "usually helps"
                )
            shown = {"epoch": epoch, "loss": values["loss"]}
            if _evaluates(epoch, settings):
                values["ndcg"] = task.evaluate(state["params"])
                if values["ndcg"] > course.best:
                    best = jax.tree.map(jnp.copy, state["params"])
                    course = dataclasses.replace(
                        course, best=values["ndcg"], best_epoch=epoch, stale=0
                    )
                else:
                    course = dataclasses.replace(course, stale=course.stale + 1)
                shown |= {"ndcg": values["ndcg"], "best": course.best}
            bar.update(0, **shown)
            seconds = time.monotonic() - begun
            course = dataclasses.replace(course, epoch=epoch, seconds=course.seconds + seconds)
            log.write(task.name, epoch, **values, seconds=round(seconds, 3))
            if time.monotonic() - saved_at >= settings.save_seconds:
                _save(store, course, state, best)
                saved_at = time.monotonic()
    store.save("best", course.best_epoch, best, dataclasses.asdict(course))
    store.delete("state")
    return Fitted(best, course)


def _save(store: Store, course: Course, state: Tree, best: Tree) -> None:
    store.save("state", course.epoch, {"state": state, "best": best}, dataclasses.asdict(course))
