"""Formulas: what settings of the plugins and the encoder add to the cost of a step."""

import numpy as np

from pdrec_jax.plan import analytic
from pdrec_jax.plan.sizes import Sizes
from pdrec_jax.settings import default_config


def test_negatives_cost_what_a_variant_draws() -> None:
    sizes = Sizes(100, 300, np.full(100, 9), "given")

    def read(variant: str, placement: str) -> float:
        """Bytes of a dispatch of steps."""
        config = default_config()
        config.encoder.negatives, config.nns.drawn, config.nns.placement = 4, 2, placement
        config.encoder.variants = (variant,)
        found = analytic.programs(config, sizes, 1, 1)
        (step,) = (each for each in found if each.name in ("SASRec: train", "SASRec+NNS: train"))
        return step.cost.bytes

    base = read("base", "beside")
    assert read("base", "instead") == base
    assert read("nns", "instead") == base
    assert read("nns", "beside") > base


def test_views_cost_a_pass_each() -> None:
    sizes = Sizes(100, 300, np.full(100, 9), "given")
    flops = {}
    for name, title in (("sasrec", "SASRec"), ("cl4srec", "CL4SRec")):
        config = default_config()
        config.encoder.name, config.encoder.variants = name, ("base",)
        found = analytic.programs(config, sizes, 1, 1)
        (step,) = (each for each in found if each.name == f"{title}: train")
        flops[name] = step.cost.flops
    assert flops["cl4srec"] == 3 * flops["sasrec"]


def test_drawn_positives_cost_what_is_drawn() -> None:
    sizes = Sizes(100, 300, np.full(100, 9), "given")

    def step(variant: str, drawn: int) -> analytic.Program:
        config = default_config()
        config.dpa.drawn, config.encoder.variants = drawn, (variant,)
        found = analytic.programs(config, sizes, 1, 1)
        return next(
            each for each in found if each.name.startswith("SASRec") and "train" in each.name
        )

    base, picked, one, two = step("base", 1), step("dpa", 0), step("dpa", 1), step("dpa", 2)
    assert base.cost.flops == one.cost.flops < picked.cost.flops  # no pass over whole histories
    assert one.cost.bytes - base.cost.bytes == two.cost.bytes - one.cost.bytes > 0
    assert step("base", 0) == base
