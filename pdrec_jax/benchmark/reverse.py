"""Stage ``reverse``: the reverse loop in H dimensions against the dense loop over all slots."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdrec_jax.benchmark.contest import Comparison, Contestant, largest_difference
from pdrec_jax.benchmark.sizes import Sizes
from pdrec_jax.benchmark.workload import make_config
from pdrec_jax.diffusion.denoiser import Params, make_denoiser, structure
from pdrec_jax.diffusion.inference import (
    DiffusionModel,
    couple,
    score_all,
    score_all_dense,
    score_items,
)
from pdrec_jax.diffusion.schedule import make_schedule
from pdrec_jax.diffusion.vectors import InteractionVectors, gather_batch, token_budget
from pdrec_jax.evaluation.protocol import NEGATIVES


def comparisons(sizes: Sizes, source: str) -> Iterator[Comparison]:
    """Yields the comparison of the loops, then the cost of coupling, paid once a model.

    Args:
      sizes: of the work.
      source: unused, for this stage needs no log.
    """
    model, params = random_model(sizes, sizes.slots)
    vectors = random_vectors(sizes, sizes.reverse_batch, sizes.slots)
    users = np.arange(sizes.reverse_batch, dtype=np.int32)
    batch = jax.device_put(gather_batch(vectors, users, token_budget(vectors, users)))
    rng = np.random.default_rng(1)
    count = min(1 + NEGATIVES, sizes.items)
    items = jnp.asarray(rng.integers(1, sizes.items + 1, (len(users), count)), jnp.int32)
    coupled, key = couple(model, params), jax.random.key(0)
    slow, fast, some = (
        functools.partial(jax.jit(function, static_argnums=0), model, params)
        for function in (score_all_dense, score_all, score_items)
    )
    runs: dict[str, Any] = {
        "dense loop": lambda: slow(batch, key, users),
        "H space, all slots": lambda: fast(coupled, batch, key, users),
        f"H space, {count} candidates": lambda: some(coupled, batch, key, users, items),
    }
    names = tuple(runs)

    def agree() -> Mapping[str, float]:
        dense, everything, chosen = (np.asarray(run()) for run in runs.values())
        expected = np.take_along_axis(dense, np.asarray(items), axis=1)
        return {
            names[1]: largest_difference(everything, dense),
            names[2]: largest_difference(chosen, expected),
        }

    slots, hidden, steps = model.num_slots, sizes.hidden, sizes.noise_steps
    loop = 2.0 * (steps * hidden**2 + int(vectors.lengths[0]) * hidden)
    flops = (4.0 * steps * slots * hidden, loop + 2 * slots * hidden, loop + 2 * count * hidden)
    yield Comparison(
        "reverse",
        f"{slots:,} slots, H {hidden:,}, T {steps}, batches of {len(users)}, float32",
        f"random denoiser, {int(vectors.lengths[0])} non-zeros a user",
        "user",
        tuple(
            Contestant(name, run, len(users), len(users) * work, twin)
            for (name, run), work, twin in zip(
                runs.items(), flops, (None, names[0], names[0]), strict=True
            )
        ),
        repeats=20,
        agree=agree,
        agreement="largest difference of a score from the dense loop's, over the largest score",
        notes=("W_o W_x, which the loop in H space needs once a model, is timed below.",),
    )
    yield Comparison(
        "reverse",
        f"W_o W_x and b_o W_x, {slots:,} slots, H {hidden:,}",
        "random denoiser",
        "model",
        (Contestant("coupling", lambda: couple(model, params), 1, 2.0 * slots * hidden**2),),
        repeats=5,
    )


def random_model(sizes: Sizes, slots: int) -> tuple[DiffusionModel, Params]:
    """Makes a denoiser with its initial values, at the main job's schedule.

    Args:
      sizes: of the work.
      slots: I.
    """
    config = make_config(sizes, "auto").diffusion
    make = functools.partial(
        make_denoiser, slots, (sizes.hidden,), config.embedding_size, normalise=False, seed=0
    )
    schedule = make_schedule(
        config.schedule,
        sizes.noise_steps,
        noise_scale=config.noise_scale,
        noise_min=config.noise_min,
        noise_max=config.noise_max,
    )
    return DiffusionModel(structure(make), slots, schedule), jax.jit(lambda: make()[1])()


def random_vectors(sizes: Sizes, users: int, slots: int) -> InteractionVectors:
    """Draws vectors with the same number of non-zeros each, at distinct target items.

    Args:
      sizes: of the work.
      users: U.
      slots: I.
    """
    rng = np.random.default_rng(0)
    count = min(sizes.nonzeros, sizes.items)
    items = [1 + rng.choice(sizes.items, count, replace=False) for _ in range(users)]
    return InteractionVectors(
        np.arange(users + 1, dtype=np.int64) * count,
        np.concatenate(items).astype(np.int32),
        rng.uniform(0.5, 1.0, users * count).astype(np.float32),
        slots,
    )
