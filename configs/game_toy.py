"""The paper's cross-domain task Toy to Game: both logs in time order, Game recommended.

  python -m pdrec_jax.prepare --dataset=amazon --out=data
  python -m pdrec_jax.main --config=configs/game_toy.py
  python -m pdrec_jax.main --config=configs/game_toy.py:variant=paper

All models are trained over both catalogues and ranked on Game's items. The authors publish no
settings of this task: Game's are taken.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(variant: str = "readme") -> ConfigDict:
    """Returns the config; ``variant`` is ``paper`` or ``readme``, with or without ``variant=``."""
    single = runpy.run_path(str(Path(__file__).with_name("game.py")))["get_config"]
    config = single(variant)
    config.name = "game_toy"
    config.data.mixed = True
    return config
