"""Compiles a small job for 8 processors and prints what was found; test_compile.py runs it."""

import dataclasses
import json

import jax
import numpy as np

from pdrec_jax.plan import analytic
from pdrec_jax.plan.compile import compiled
from pdrec_jax.plan.roofline import Program
from pdrec_jax.plan.sizes import Sizes
from pdrec_jax.plan.stages import stages
from pdrec_jax.settings import default_config
from pdrec_jax.sharding import mesh_of

config = default_config()
config.diffusion.hidden, config.diffusion.steps = (16,), 3
config.diffusion.batch_size = config.diffusion.block = 32
config.encoder.batch_size = config.encoder.block = 32
config.encoder.width, config.encoder.blocks, config.encoder.max_length = 16, 1, 16
config.encoder.variants = ("hbr+nns+dpa",)
config.nns.kept, config.dpa.coarse, config.dpa.fine = 8, 8, 2
sizes = Sizes(140_009, 160_013, np.full(1, 9), "given")


def described(program: Program) -> dict[str, float]:
    cost = program.cost
    sums = {"flops": cost.flops, "bytes": cost.bytes, "sent": cost.sent, "runs": program.runs}
    return dataclasses.asdict(program.memory) | sums


found = {}
estimated = {program.name: program for program in analytic.programs(config, sizes, 2, 4)}
for stage in stages(config, sizes, mesh_of(jax.devices(), 2, 4)):
    program = compiled(stage, sizes)
    found[stage.name] = {
        "whole": program.whole,
        "compiled": described(program),
        "estimated": described(estimated[stage.name]),
    }
    if stage.name == "preferences: score":
        # Where nothing splits the catalogue, it must be found whole.
        for other in stages(config, sizes, mesh_of(jax.devices(), 8, 1)):
            if other.name == stage.name:
                found["not split"] = {"whole": compiled(other, sizes).whole}

# Windows, and the dense loop.
config.diffusion.noise_fraction, config.diffusion.error_fraction = 0.25, 0.125
config.diffusion.sampling_noise = True
estimated = {program.name: program for program in analytic.programs(config, sizes, 2, 4)}
for stage in stages(config, sizes, mesh_of(jax.devices(), 2, 4)):
    if stage.name in ("diffusion: train", "diffusion: rank candidates"):
        program = compiled(stage, sizes)
        found[f"{stage.name}, other options"] = {
            "whole": program.whole,
            "compiled": described(program),
            "estimated": described(estimated[stage.name]),
        }
print(json.dumps(found))
