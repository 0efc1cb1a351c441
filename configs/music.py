"""The paper's Music (Douban): Book's settings with the two logs in swapped roles.

  python -m pdrec_jax.prepare --dataset=douban --out=data
  python -m pdrec_jax.main --config=configs/music.py
  python -m pdrec_jax.main --config=configs/music.py:variant=paper
  python -m pdrec_jax.main --config=configs/music.py:variant=times

The file with the times of Music could not be had when this was made, so its behaviours are weighed
by position: the diffusion model is T-DiffRec, and its results carry that name. Where `prepare`
gets that file, the variants ``times`` and ``paper-times`` weigh by time, as the paper does. The
authors publish commands for Book alone.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from pdrec_jax.errors import UserError


def get_config(variant: str = "readme") -> ConfigDict:
    """Returns the config; ``variant`` is one of the above, with or without ``variant=``."""
    book = runpy.run_path(str(Path(__file__).with_name("book.py")))["get_config"]
    variant = variant.removeprefix("variant=")
    if variant not in ("readme", "paper", "times", "paper-times"):
        raise UserError(
            f"variant 'readme', 'paper', 'times' or 'paper-times' is expected, got {variant!r}"
        )
    config = book("paper" if variant.startswith("paper") else "readme")
    config.name = "music"
    config.data.target, config.data.auxiliary = config.data.auxiliary, config.data.target
    if variant.endswith("times"):
        config.data.time = config.data.auxiliary_time = "timestamp"
        # In the authors' mixed log of Toy and Game the first domain goes first where times tie.
        config.data.auxiliary_first = True
    else:
        config.data.time, config.data.auxiliary_time = "order", "timestamp"
        config.diffusion.weighting = "position"
    return config
