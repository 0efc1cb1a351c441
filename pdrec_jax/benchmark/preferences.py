"""Stage ``preferences``: reverse loop and pools of all users."""

from collections.abc import Iterator

import jax
import numpy as np

from pdrec_jax.benchmark.contest import Comparison, Contestant
from pdrec_jax.benchmark.sizes import Sizes
from pdrec_jax.benchmark.workload import make_workload
from pdrec_jax.data.batches import blocks
from pdrec_jax.diffusion.inference import couple, score_all
from pdrec_jax.diffusion.preferences import Preferences, compute_preferences
from pdrec_jax.diffusion.stage import make_model, vectors_of
from pdrec_jax.diffusion.vectors import gather_batch, token_budget
from pdrec_jax.given import pool_rules
from pdrec_jax.settings import seeded


def comparisons(sizes: Sizes, source: str) -> Iterator[Comparison]:
    """Yields the time of the whole pass, with a denoiser that has its initial values.

    Args:
      sizes: of the work.
      source: see ``make_workload``.
    """
    workload = make_workload(sizes, source)
    config, split = seeded(workload.config, "diffusion"), workload.split
    model, initialise = make_model(config, split)
    params = initialise()
    vectors = vectors_of(config, split, model.num_slots, heldin=False)
    index = np.flatnonzero(workload.users.preferences)
    tokens = token_budget(vectors, np.stack(blocks(index, config.block)))
    protocol = workload.protocol
    rules = pool_rules(workload.config, protocol)
    score, key = jax.jit(score_all, static_argnums=(0, 6)), jax.random.key(0)
    first = 1 + split.train.num_items

    def run() -> Preferences:
        coupled = couple(model, params)

        def score_blocks(rows: np.ndarray) -> jax.Array:
            batch = gather_batch(vectors, rows, tokens)
            return score(model, params, coupled, batch, key, rows, first)

        return compute_preferences(
            score_blocks,
            split,
            workload.users.preferences,
            rules,
            exclude_heldout=protocol.nns_excludes_heldout,
            seed=config.seed,
            block=config.block,
        )

    slots, hidden = model.num_slots, sizes.hidden
    a_user = 2.0 * (sizes.noise_steps * hidden**2 + first * hidden)
    yield Comparison(
        "preferences",
        f"{slots:,} slots, H {hidden:,}, T {sizes.noise_steps}, blocks of {config.block}, "
        f"M {rules.candidates}, R {rules.negatives}",
        workload.label,
        "user",
        (
            Contestant(
                "reverse loop and pools",
                run,
                len(index),
                # Both tables for the coupling, then the output's once a block, and the scores.
                2.0 * slots * hidden**2 + len(index) * a_user,
                moved=4.0 * hidden * (2 * slots + first * -(-len(index) // config.block))
                + 4.0 * first * len(index),
            ),
        ),
        repeats=5,
        notes=("Every user's in one call, with the coupling of the model.",),
    )
