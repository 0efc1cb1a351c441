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
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from pdrec_jax import interrupts, processes
from pdrec_jax.checkpoints import NoCheckpoint, Store
from pdrec_jax.errors import UserError, warn
from pdrec_jax.metric_log import MetricLog

Tree = Any
# Takes the steps of a dispatch, returns whether to stop there.
Advance = Callable[[int], Any]


class Unfinished(Exception):
    """An epoch was asked to stop between two dispatches.

    Attributes:
      state: so far.
      losses: of the steps so far.
    """

    def __init__(self, state: Tree, losses: np.ndarray):
        super().__init__()
        self.state, self.losses = state, losses


def learning_rate(config: ConfigDict, epoch: Any) -> Any:
    """The learning rate of an epoch, which falls by a factor with each.

    Args:
      config: section of a stage.
      epoch: from 1; or an array of them.
    """
    return config.learning_rate * config.learning_rate_decay ** (epoch - 1)


def epoch_values(losses: np.ndarray, rate: float) -> dict[str, float]:
    """What the log is told of an epoch.

    Args:
      losses: [steps], on the host: reading them once an epoch costs no step a wait.
      rate: the learning rate.

    Returns:
      ``loss``, the mean, and ``learning_rate``; where a loss is not finite also ``step``, the first
      such, from 1.
    """
    values = {"loss": float(losses.mean()), "learning_rate": rate}
    wrong = ~np.isfinite(losses)
    if wrong.any():
        values["step"] = float(1 + np.argmax(wrong))
    return values


class Diverged(UserError):
    """Losses, scores or parameters have left the range of floats."""


class Task(Protocol):
    """What the loop trains."""

    @property
    def name(self) -> str:
        """Name of the stage, in the log."""

    @property
    def steps(self) -> int:
        """Gradient steps an epoch."""

    def initial(self) -> Tree:
        """Returns the state before the first epoch; its ``params`` are those of ``parameters``."""

    def abstract(self) -> Tree:
        """Returns the shapes of ``initial``, and on a mesh where they lie."""

    def run_epoch(
        self, state: Tree, epoch: int, advance: Advance, done: Sequence[float] = ()
    ) -> tuple[Tree, dict[str, float]]:
        """Trains epoch ``epoch`` (from 1), donating ``state``.

        Calls ``advance(steps)`` after each dispatch, and raises ``Unfinished`` where that returns
        True in the midst of the epoch. ``done`` are then the losses to go on from. Returns the new
        state, and what ``epoch_values`` returns.
        """

    def parameters(self, state: Tree) -> Tree:
        """Returns what is evaluated and kept of a state; it may share arrays with the state."""

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
      save_behind: save in the background, see ``Store.save``.
    """

    epochs: int
    patience: int
    first_evaluation: int = 1
    min_epochs: int = 0
    evaluate_every: int = 1
    save_seconds: float = 300.0
    save_behind: bool = False


@dataclasses.dataclass(frozen=True)
class Course:
    """How far a run has come.

    Attributes:
      epoch: epochs done.
      best_epoch: the epoch whose parameters are kept, 0 before the first evaluation.
      best: its metric.
      stale: evaluations since.
      seconds: wall time spent in epochs and evaluations.
      losses: of the steps of an epoch that a signal interrupted.
      origin: where the parameters come from if they were not trained here, see ``convert``.
    """

    epoch: int = 0
    best_epoch: int = 0
    best: float = -1.0
    stale: int = 0
    seconds: float = 0.0
    losses: tuple[float, ...] = ()
    origin: str = ""

    @classmethod
    def read(cls, meta: dict[str, Any]) -> Course:
        """Returns the course that was saved as JSON."""
        return cls(**{**meta, "losses": tuple(meta.get("losses", ()))})

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
      diverged: what has ended it before its time, beside others that train on; None of any other.
    """

    def __init__(self, task: Task, settings: LoopSettings, store: Store, log: MetricLog):
        self.task, self.settings, self.store, self.log = task, settings, store, log
        self.shown: dict[str, float] = {}
        self.diverged: Diverged | None = None
        like = task.abstract()  # only shapes: two states may be more than fits
        self.state: Tree = None
        best = self._restored("best", like["params"])
        self.finished = best is not None
        if best is not None:
            self._best, self.course = best
            store.delete("state")  # left by a kill right after the last save
            return
        found = self._restored("state", {"state": like, "best": like["params"]})
        if found is None:
            self.state, self.course = task.initial(), Course()
            # The epoch donates the state, so what is kept must be a copy.
            self._best = jax.tree.map(jnp.copy, self.state["params"])
        else:
            saved, self.course = found
            self.state, self._best = saved["state"], saved["best"]
        self._last_saved = self.course.epoch if found is not None else None
        self._saved_step = self._step() if found is not None else None
        log.rewind(task.name, self.course.epoch)
        self._saved_at = time.monotonic()

    def _restored(self, slot: str, like: Tree) -> tuple[Tree, Course] | None:
        """What a slot holds; None where it is empty, or warned of where all in it is broken."""
        if self.store.step(slot) is None:
            return None
        try:
            saved, meta = self.store.restore(slot, like)
        except NoCheckpoint as error:
            warn(f"{error}; {self.task.name} is trained anew")
            self.store.delete(slot)
            return None
        return saved, Course.read(meta)

    @property
    def fitted(self) -> Fitted:
        """The outcome so far."""
        return Fitted(self._best, self.course)

    def measure(self, state: Tree, values: dict[str, float]) -> None:
        """Adds the metric ``ndcg`` to an epoch's values, where the epoch is to be evaluated."""
        due = _evaluates(self.course.epoch + 1, self.settings)
        if due and math.isfinite(values["loss"]):
            values["ndcg"] = self.task.evaluate(self.task.parameters(state))

    def settle(self, state: Tree, values: dict[str, float], seconds: float) -> None:
        """Takes in an epoch that was trained and measured.

        Args:
          state: after the epoch.
          values: from the task and ``measure``, for the log.
          seconds: that the epoch took.

        Raises:
          Diverged: a loss that is not finite, or parameters that would be kept.
          UserError: the state is due, and cannot be saved.
        """
        settings, course = self.settings, self.course
        epoch, self.state = course.epoch + 1, state
        if not math.isfinite(values["loss"]):
            step = f"step {values['step']:.0f} of " if "step" in values else ""
            raise self._diverged(f"the loss is {values['loss']} in {step}epoch {epoch}", values)
        self.shown = {"epoch": epoch, "loss": values["loss"]}
        if "ndcg" in values:
            if not math.isfinite(values["ndcg"]):
                raise self._diverged(f"scores are not finite after epoch {epoch}", values)
            if values["ndcg"] > course.best:
                params = jax.tree.map(jnp.copy, self.task.parameters(state))
                # The last step's are in no loss yet; and what is not a number ranks above nothing,
                # so that a relevant item without a score would come first.
                if not _all_finite(params):
                    raise self._diverged(f"parameters are not finite after epoch {epoch}", values)
                self._best = params
                course = dataclasses.replace(course, best=values["ndcg"], best_epoch=epoch, stale=0)
            else:
                course = dataclasses.replace(course, stale=course.stale + 1)
            self.shown |= {"ndcg": values["ndcg"], "best": course.best}
        self.course = dataclasses.replace(
            course, epoch=epoch, seconds=course.seconds + seconds, losses=()
        )
        self.log.write(self.task.name, epoch, **values, seconds=round(seconds, 3))
        if processes.any_of(time.monotonic() - self._saved_at >= settings.save_seconds):
            self.save(behind=settings.save_behind)

    def _diverged(self, what: str, values: dict[str, float] | None = None) -> Diverged:
        """What is raised where numbers have left the range of floats."""
        if values is not None:
            what += f" at learning rate {values['learning_rate']:.3g}"
        kept = "no state was saved before it"
        if self._last_saved is not None:
            kept = f"the last good state is that of epoch {self._last_saved} in "
            kept += f"{self.store.directory / 'state'}"
        return Diverged(
            f"{self.task.name}: {what}; {kept}. A smaller learning rate in another workdir usually "
            "helps"
        )

    def save(self, *, behind: bool = False) -> None:
        """Saves the state, by the number of its steps.

        Raises:
          Diverged: parameters or losses are not finite; they are not to take the place of those
            that are.
          UserError: see ``Store.save``.
        """
        course, step = self.course, self._step()
        if step == self._saved_step:
            self.store.finish()
            return  # to write it once more would leave a moment without it
        if not np.isfinite(course.losses).all():
            raise self._diverged(f"a loss of epoch {course.epoch + 1} is not finite")
        if not _all_finite(self.state["params"]):
            raise self._diverged(f"parameters are not finite after epoch {course.epoch}")
        tree = {"state": self.state, "best": self._best}
        self.store.save("state", step, tree, dataclasses.asdict(course), behind=behind)
        self._last_saved, self._saved_at = course.epoch, time.monotonic()
        self._saved_step = step

    def _step(self) -> int:
        """Steps done."""
        return self.course.epoch * self.task.steps + len(self.course.losses)

    def interrupt(self) -> str:
        """Saves the state because of a signal; returns where it stands, in words."""
        course = self.course
        self.save()
        steps = f" and {len(course.losses)} steps" * bool(course.losses)
        return f"{self.task.name} is saved after epoch {course.epoch}{steps}"

    def interrupt_within(self, part: Unfinished, seconds: float) -> str:
        """Does what ``interrupt`` does in the midst of an epoch."""
        losses = tuple(float(loss) for loss in part.losses)
        spent = self.course.seconds + seconds
        self.state = part.state
        self.course = dataclasses.replace(self.course, losses=losses, seconds=spent)
        return self.interrupt()

    def close_if_stopped(self) -> bool:
        """Saves the best parameters once training is over; returns whether it is."""
        if not self.finished and self.course.stopped(self.settings):
            meta = dataclasses.asdict(self.course)
            self.state = None  # a save takes room of its own
            self.store.save("best", self.course.best_epoch, self._best, meta)
            self.store.delete("state")
            self.finished = True
        return self.finished


@jax.jit
def _all_finite(tree: Tree) -> jax.Array:
    """Whether every number of a tree is finite, [] bool."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


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
      Diverged: a loss that is not finite.
      Interrupted: a signal came; the state is saved.
    """
    with interrupts.deferred(), store.finishing():
        run = Run(task, settings, store, log)
        if not run.finished:
            _train(run)
    return run.fitted


def _train(run: Run) -> None:
    """Trains a run to its end, or to a signal."""
    task, begun_at = run.task, run.course.epoch * run.task.steps + len(run.course.losses)
    total = run.settings.epochs * task.steps
    with run.log.progress(task.name, total, "step", initial=begun_at) as bar:

        def advance(steps: int) -> bool:
            bar.update(steps, **run.shown)
            return processes.any_of(interrupts.pending())

        while not run.close_if_stopped():
            course, begun = run.course, time.monotonic()
            try:
                state, values = task.run_epoch(
                    run.state,
                    course.epoch + 1,
                    advance,
                    *([course.losses] if course.losses else ()),
                )
            except Unfinished as part:
                saved = run.interrupt_within(part, time.monotonic() - begun)
                interrupts.stop(saved, of_another=True)
                raise
            run.measure(state, values)
            run.settle(state, values, time.monotonic() - begun)
            del state  # the run has it, and lets go of it at the end
            bar.update(0, **run.shown)
            if processes.any_of(interrupts.pending()) and not run.close_if_stopped():
                interrupts.stop(run.interrupt(), of_another=True)
