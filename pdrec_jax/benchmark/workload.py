"""The log that the stages work on, and what they need of it."""

import dataclasses
import functools

import numpy as np
from ml_collections import ConfigDict

from pdrec_jax.benchmark.sizes import Sizes
from pdrec_jax.data import sources
from pdrec_jax.data.interactions import Interactions
from pdrec_jax.data.simulator import draw_lengths, simulate
from pdrec_jax.data.splits import Split, leave_one_out
from pdrec_jax.errors import UserError
from pdrec_jax.evaluation.protocol import (
    STRICT,
    Protocol,
    UserSets,
    draw_candidates,
    user_sets,
)
from pdrec_jax.overrides import validate
from pdrec_jax.settings import default_config


@dataclasses.dataclass(frozen=True, eq=False)
class Workload:
    """A split and its surroundings.

    Attributes:
      config: the main job's, at the benchmark's sizes.
      protocol: ``strict``.
      split: of the log.
      users: who takes part where.
      candidates: of the test item, [U, 1 + N].
      validation: of the validation item, [U, 1 + N].
      label: where the log comes from.
    """

    config: ConfigDict
    protocol: Protocol
    split: Split
    users: UserSets
    candidates: np.ndarray
    validation: np.ndarray
    label: str

    def copy(self) -> ConfigDict:
        """Returns a copy of the config, to change."""
        return self.config.copy_and_resolve_references()


def make_config(sizes: Sizes, source: str) -> ConfigDict:
    """Builds the main job's config at the given sizes.

    Args:
      sizes: of the work.
      source: ``auto``, ``real`` or ``simulated``; ``auto`` takes the Toy logs where there are any
        and the sizes are theirs.

    Raises:
      UserError: sizes that do not go together.
    """
    if source == "real" and not sizes.of_toy:
        raise UserError("--data=real: the log decides on users and items, their flags do not apply")
    config = default_config()
    config.data.source = source if sizes.of_toy else "simulated"
    config.data.target, config.data.auxiliary = "amazon_toy.inter", "amazon_game.inter"
    config.data.ids = "integer"
    simulation, diffusion, encoder = config.simulation, config.diffusion, config.encoder
    simulation.num_users, simulation.num_items = sizes.users, sizes.items
    simulation.num_source_items = sizes.source_items
    diffusion.hidden, diffusion.steps = (sizes.hidden,), sizes.noise_steps
    diffusion.batch_size = sizes.diffusion_batch
    encoder.batch_size, encoder.width = sizes.encoder_batch, sizes.width
    encoder.blocks, encoder.max_length = sizes.blocks, sizes.max_length
    validate(config)
    return config


@functools.lru_cache(maxsize=1)
def make_workload(sizes: Sizes, source: str) -> Workload:
    """Reads or simulates the log, and splits it; the stages of one run share it.

    Args:
      sizes: of the work.
      source: see ``make_config``.

    Raises:
      UserError: see ``make_config``; or a log cannot be read.
    """
    config = make_config(sizes, source)
    files = sources.find_files(config)
    label = "SIMULATED log"
    if files is None:
        log = _simulated(config)
    else:
        log, found = sources.load(config, files)
        label = f"real log ({', '.join(file['name'] for file in found['files'])})"
    split = leave_one_out(log)
    test, valid = (
        draw_candidates(STRICT, split, config.seed, heldout=heldout)
        for heldout in ("test", "valid")
    )
    train = split.train
    return Workload(
        config=config,
        protocol=STRICT,
        split=split,
        users=user_sets(STRICT, split),
        candidates=test,
        validation=valid,
        label=f"{label}, {train.num_users:,} users, {train.num_items:,} items, "
        f"mean history {train.lengths.mean():.1f}",
    )


def _simulated(config: ConfigDict) -> Interactions:
    """A log whose histories, and so a step's work, are as long at any size of the catalogue."""
    simulation, seed = config.simulation, config.seed
    users, items, mean = simulation.num_users, simulation.num_items, simulation.mean_length
    lengths = draw_lengths(np.random.default_rng(seed), users, items, mean)
    source_items = simulation.num_source_items
    return simulate(users, items, seed=seed, source_items=source_items, lengths=lengths).log
