"""Stage ``evaluation``: ranking every user's test item, sampled and in full."""

import functools
from collections.abc import Iterator
from typing import Any

from pdrec_jax.benchmark.contest import Comparison, Contestant
from pdrec_jax.benchmark.sizes import Sizes
from pdrec_jax.benchmark.workload import make_workload
from pdrec_jax.diffusion.stage import build as build_diffusion
from pdrec_jax.encoders.stage import build as build_encoder
from pdrec_jax.encoders.stage import title_of
from pdrec_jax.settings import seeded


def comparisons(sizes: Sizes, source: str) -> Iterator[Comparison]:
    """Yields the times of the diffusion model and of the encoders, with their initial values.

    Args:
      sizes: of the work.
      source: see ``make_workload``.
    """
    workload = make_workload(sizes, source)
    config, split = workload.config, workload.split
    tables: dict[str, Any] = {"candidates": workload.candidates, "validation": workload.validation}
    diffusion, ranks = build_diffusion(
        seeded(config, "diffusion"),
        split,
        workload.users.diffusion,
        protocol=workload.protocol,
        **tables,
    )
    models: list[tuple[str, Any, Any]] = [("TI-DiffRec", ranks["test"], diffusion.initialise())]
    for name in sizes.encoders:
        config = workload.copy()
        config.encoder.name = name
        encoder, encoder_ranks = build_encoder(
            config,
            "base",
            split,
            None,
            drawn=workload.users.preferences,
            ranked=workload.users.encoder,
            protocol=workload.protocol,
            name="base",
            **tables,
        )
        title = title_of(config.encoder, "base")
        models.append((title, encoder_ranks["test"], encoder.initialise()))
    slots, hidden = diffusion.model.num_slots, sizes.hidden
    loop = sizes.noise_steps * hidden**2
    contestants = []
    for title, scorer, params in models:
        assert scorer is not None
        count = len(scorer.users)
        for kind, items in (("sampled", workload.candidates.shape[1]), ("full", slots)):
            flops = None
            if title == "TI-DiffRec":
                flops = 2.0 * (slots * hidden**2 + count * (loop + items * hidden))
            run = functools.partial(getattr(scorer, kind), params)
            contestants.append(Contestant(f"{title}, {kind}", run, count, flops))
    yield Comparison(
        "evaluation",
        f"{slots - 1:,} items, {workload.candidates.shape[1] - 1} sampled negatives, "
        f"H {hidden:,}, T {sizes.noise_steps}, D {sizes.width}",
        workload.label,
        "user",
        tuple(contestants),
        repeats=5,
        notes=("Every user's in one call; TI-DiffRec's with the coupling of the model.",),
    )
