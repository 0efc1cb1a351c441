"""The paper's Music (Douban): Book's settings with the two logs in swapped roles, without times.

  python -m pdrec_jax.prepare --dataset=douban --out=data
  python -m pdrec_jax.main --config=configs/music.py
  python -m pdrec_jax.main --config=configs/music.py:variant=paper

The file with the times of Music could not be had when this was made, so its behaviours are weighed
by position: the diffusion model is T-DiffRec, and its results carry that name. The authors publish
commands for Book alone.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(variant: str = "readme") -> ConfigDict:
    """Returns the config; ``variant`` is ``paper`` or ``readme``, with or without ``variant=``."""
    book = runpy.run_path(str(Path(__file__).with_name("book.py")))["get_config"]
    config = book(variant)
    config.name = "music"
    config.data.target, config.data.auxiliary = config.data.auxiliary, config.data.target
    config.data.time, config.data.auxiliary_time = "order", "timestamp"
    config.diffusion.weighting = "position"
    return config
