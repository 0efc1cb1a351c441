"""Stage ``diffusion_step``: noise on all slots against noise on a window of them."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from pdrec_jax.benchmark.contest import Comparison, Contestant, Training, largest_difference
from pdrec_jax.benchmark.sizes import Sizes
from pdrec_jax.benchmark.workload import Workload, make_workload
from pdrec_jax.diffusion.stage import DiffusionTask, build
from pdrec_jax.diffusion.step import training_loss
from pdrec_jax.diffusion.vectors import gather_batch, token_budget
from pdrec_jax.settings import seeded


def comparisons(sizes: Sizes, source: str) -> Iterator[Comparison]:
    """Yields one comparison: dense and windowed noise, over all slots and the target's alone.

    Args:
      sizes: of the work.
      source: see ``make_workload``.
    """
    workload = make_workload(sizes, source)
    fractions = dict.fromkeys((1.0, sizes.noise_fraction))
    contestants: list[Contestant] = []
    pairs: list[tuple[Training, dict[str, DiffusionTask]]] = []
    for source_slots in dict.fromkeys((sizes.source_items > 0, False)):
        tasks = {}
        for fraction in fractions:
            task = _task(workload, sizes, fraction, source_slots)
            noise = "dense" if fraction == 1 else f"window {fraction:g}"
            tasks[f"{noise}, {task.model.num_slots:,} slots"] = task
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
        agreement="one step's loss from dense noise on the same slots, by the draw of the noise",
        notes=("Operations are those of the five large products, less what the window saves.",),
    )


def _task(workload: Workload, sizes: Sizes, fraction: float, source_slots: bool) -> DiffusionTask:
    config = workload.copy()
    config.diffusion.noise_fraction = fraction
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
    loss = jax.jit(training_loss, static_argnums=(1, 4))
    found = {}
    for state, tasks in pairs:
        dense = None
        for name, task in tasks.items():
            users = np.resize(task.users, size)
            batch = gather_batch(task.vectors, users, token_budget(task.vectors, users))
            params, history = state.state["params"], state.state["history"]
            _, (_, mean) = loss(params, task.model, history, batch, size, jax.random.key(0))
            if dense is None:
                dense = mean
            else:
                found[name] = largest_difference(mean, dense)
    return found


def _flops(sizes: Sizes, task: DiffusionTask) -> float:
    """Operations of a step: forward and gradient of two layers, without that of the input.

    The first layer's two products see the window alone.
    """
    fraction = task.model.noise_fraction
    slots = task.model.num_slots
    window = slots if fraction == 1 else -(-slots // round(1 / fraction))
    return 2.0 * sizes.diffusion_batch * sizes.hidden * (2 * window + 3 * slots)
