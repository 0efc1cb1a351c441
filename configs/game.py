"""The paper's Game (Amazon Video Games): Toy's settings with the two logs in swapped roles.

  python -m pdrec_jax.prepare --dataset=amazon --out=data
  python -m pdrec_jax.main --config=configs/game.py
  python -m pdrec_jax.main --config=configs/game.py:variant=paper

The authors publish commands for Toy alone; the paper gives one set of values for both. Toy's
variants ``readme``, the default here, and ``paper`` are Game's too. The authors' one mixed log has
Toy before Game within a day.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(variant: str = "readme") -> ConfigDict:
    """Returns the config; ``variant`` is ``paper`` or ``readme``, with or without ``variant=``."""
    toy = runpy.run_path(str(Path(__file__).with_name("toy.py")))["get_config"]
    config = toy(variant)
    config.name = "game"
    config.data.target, config.data.auxiliary = config.data.auxiliary, config.data.target
    config.data.auxiliary_first = True
    return config
