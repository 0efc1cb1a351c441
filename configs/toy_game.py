"""The paper's cross-domain task Game to Toy: both logs in time order, Toy recommended.

  python -m pdrec_jax.prepare --dataset=amazon --out=data
  python -m pdrec_jax.main --config=configs/toy_game.py
  python -m pdrec_jax.main --config=configs/toy_game.py:variant=paper

All models are trained over both catalogues and ranked on Toy's items. The authors publish no
settings of this task: Toy's are taken, by default those of its variant ``readme``.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(variant: str = "readme") -> ConfigDict:
    """Returns the config; ``variant`` is ``paper`` or ``readme``, with or without ``variant=``."""
    single = runpy.run_path(str(Path(__file__).with_name("toy.py")))["get_config"]
    config = single(variant)
    config.name = "toy_game"
    config.data.mixed = True
    return config
