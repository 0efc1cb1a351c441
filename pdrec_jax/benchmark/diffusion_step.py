"""Stage ``diffusion_step``: noise and error on all slots against those on windows of them."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from pdrec_jax.benchmark.contest import Comparison, Contestant, Training, largest_difference
from pdrec_jax.benchmark.sizes import Sizes
from pdrec_jax.benchmark.workload import Workload, make_workload
from pdrec_jax.diffusion.stage import build
from pdrec_jax.diffusion.task import DiffusionTask
from pdrec_jax.diffusion.windows import width_of_windows
from pdrec_jax.settings import seeded


def comparisons(sizes: Sizes, source: str) -> Iterator[Comparison]:
    """Yields one comparison: dense over all slots and the target's alone, and there on windows.

    Args:
      sizes: of the work.
      source: see ``make_workload``.
    """
    workload = make_workload(sizes, source)
    noise, error = sizes.noise_fraction, sizes.error_fraction
    windows = {"dense": (1.0, 1.0), "window": (noise, 1.0), "windows": (noise, error)}
    contestants: list[Contestant] = []
    pairs: list[tuple[Training, dict[str, DiffusionTask]]] = []
    for source_slots in dict.fromkeys((sizes.source_items > 0, False)):
        tasks = {}
        for name, fractions in windows.items():
            if source_slots and fractions != (1.0, 1.0):
                continue
            task = _task(workload, sizes, fractions, source_slots)
            tasks[f"{name}, {task.model.num_slots:,} slots"] = task
        state = Training(next(iter(tasks.values())).initial())
        pairs.append((state, tasks))
        for name, task in tasks.items():
            contestants.append(
                Contestant(
                    name,
                    functools.partial(state.run, task),
                    sizes.steps,
                    sizes.steps * _flops(sizes, task),
                    contestants[0].name if contestants else None,
                    moved=sizes.steps * _moved(sizes, task),
                )
            )
    yield Comparison(
        "diffusion_step",
        f"training step, B {sizes.diffusion_batch}, H {sizes.hidden:,}, T {sizes.noise_steps}, "
        f"{sizes.steps} steps a call",
        workload.label,
        "step",
        tuple(contestants),
        repeats=7,
        agree=functools.partial(_agree, pairs, sizes.diffusion_batch),
        agreement="one step's loss from the dense form on the same slots, by the draw of the noise",
        notes=(
            f"Window: {noise:g} of the slots carry noise; windows: and the error of {error:g}, of "
            "popular slots and of a user's own is looked at.",
            "Operations are those of the five large products, less what windows save; bytes those "
            "of the two tables, their moments and their gradients.",
        ),
    )


def _task(
    workload: Workload, sizes: Sizes, fractions: tuple[float, float], source_slots: bool
) -> DiffusionTask:
    config = workload.copy()
    config.diffusion.noise_fraction, config.diffusion.error_fraction = fractions
    config.diffusion.source_slots = source_slots
    task, _ = build(
        seeded(config, "diffusion"),
        workload.split,
        workload.users.diffusion,
        protocol=workload.protocol,
        candidates=workload.candidates,
        validation=workload.validation,
    )
    return dataclasses.replace(task, steps=sizes.steps)


def _agree(
    pairs: list[tuple[Training, dict[str, DiffusionTask]]], size: int
) -> Mapping[str, float]:
    """Compares the losses of one batch with the same parameters and timesteps."""
    found = {}
    for state, tasks in pairs:
        dense = None
        for name, task in tasks.items():
            users = np.resize(task.users, size)
            mean = task.loss(state.state, users, jax.random.key(0))
            if dense is None:
                dense = mean
            else:
                found[name] = largest_difference(mean, dense)
    return found


def _slots(task: DiffusionTask) -> tuple[int, int]:
    """How many slots carry noise in a step, and of how many it looks at the error."""
    model = task.model
    entries, exits = (
        width_of_windows(model.num_slots, fraction)
        for fraction in (model.noise_fraction, model.error_fraction)
    )
    # The error of a window and of as many popular slots.
    return entries, min(2 * exits, model.num_slots)


def _flops(sizes: Sizes, task: DiffusionTask) -> float:
    """Operations of a step: forward and gradient of two layers, without that of the input."""
    entries, exits = _slots(task)
    return 2.0 * sizes.diffusion_batch * sizes.hidden * (2 * entries + 3 * exits)


def _moved(sizes: Sizes, task: DiffusionTask) -> float:
    """Bytes of a step: of each row value, both moments and gradient, read and written."""
    rows = 2 * task.model.num_slots
    if task.model.windowed:
        rows = min(rows, sum(_slots(task)) + 2 * sizes.diffusion_batch * sizes.nonzeros)
    return 8 * 4.0 * sizes.hidden * rows
