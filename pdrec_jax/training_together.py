"""The training loop of ``training``, for several runs side by side: the seeds of one model."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pdrec_jax import interrupts
from pdrec_jax.errors import UserError, warn
from pdrec_jax.training import Diverged, Run, Tree

# From the tasks of a group, their states and the epoch to the new states and values.
RunEpochs = Callable[[Sequence[Any], Sequence[Tree], int], list[tuple[Tree, dict[str, float]]]]


def fit_together(
    runs: Sequence[Run], label: str, run_epochs: RunEpochs | None = None, workers: int = 1
) -> None:
    """Trains several runs side by side, each to its own end, as ``fit`` would one after another.

    A run that stops leaves the group at once, and its store is then what ``fit`` leaves. So does
    one that diverges: its error is warned of, kept in ``Run.diverged`` and raised once the others
    have come to their end. Runs that a kill has left at different epochs first come level: those
    that are behind go alone.

    Args:
      runs: of tasks with the same number of steps; finished ones are passed over.
      label: for the progress bar.
      run_epochs: trains one epoch of a group; None lets each task train its own.
      workers: threads that train and evaluate tasks at the same time.

    Raises:
      Diverged: the first that did; the others are trained.
      UserError: a state cannot be saved.
      Interrupted: a signal came; the states are saved.
    """

    def measure(run: Run, state: Tree, values: dict[str, float]) -> tuple[Tree, dict[str, float]]:
        run.measure(state, values)
        return state, values

    def alone(run: Run) -> tuple[Tree, dict[str, float]]:
        epoch, done = run.course.epoch + 1, run.course.losses
        return measure(run, *run.task.run_epoch(run.state, epoch, lambda _: None, done))

    total = sum(run.settings.epochs * run.task.steps for run in runs)
    done = sum(run.course.epoch * run.task.steps for run in runs)
    compiled = False
    with (
        interrupts.deferred(),
        contextlib.ExitStack() as stores,
        runs[0].log.progress(label, total, "step", initial=done) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        for run in runs:
            stores.enter_context(run.store.finishing())
        while going := [r for r in runs if r.diverged is None and not r.close_if_stopped()]:
            epoch = 1 + min(run.course.epoch for run in going)
            group = [run for run in going if run.course.epoch + 1 == epoch]
            begun = time.monotonic()
            # In the first epoch the first task compiles for all: two at a time would do it twice.
            each = pool.map if compiled else map
            # An epoch that a signal has cut is ended by its own run.
            if run_epochs is None or any(run.course.losses for run in group):
                trained = list(each(alone, group))
            else:
                states = [run.state for run in group]
                raw = run_epochs([run.task for run in group], states, epoch)
                trained = list(each(measure, group, *zip(*raw, strict=True)))
            compiled = True
            share = (time.monotonic() - begun) / len(group)
            for run, (state, values) in zip(group, trained, strict=True):
                try:
                    run.settle(state, values, share)
                except Diverged as error:
                    # A traceback would hold on to what the others may need.
                    run.diverged, run.state = error.with_traceback(None), None
                    if len(going) > 1:
                        warn(f"{run.store.directory}: {error}; the seeds beside it train on")
                bar.update(run.task.steps, **run.shown)
            if interrupts.pending():
                saved, unsaved = [], []
                for run in runs:
                    if run.diverged is None and not run.close_if_stopped():
                        try:
                            saved.append(run.interrupt())
                        except Diverged as error:  # found by looking at what was to be saved
                            run.diverged = error.with_traceback(None)
                            warn(f"{run.store.directory}: {error}")
                        except UserError as error:  # the others are saved all the same
                            unsaved.append(error)
                if unsaved:
                    raise unsaved[0]
                interrupts.stop("; ".join(saved))
    if found := _diverged(runs):
        raise found[0]


def _diverged(runs: Sequence[Run]) -> list[UserError]:
    return [run.diverged for run in runs if run.diverged is not None]
