"""The paper's Game (Amazon Video Games): Toy's settings with the two logs in swapped roles.

  python -m pdrec_jax.prepare --dataset=amazon --out=data
  python -m pdrec_jax.main --config=configs/game.py
  python -m pdrec_jax.main --config=configs/game.py:variant=paper

The authors publish commands for Toy alone; the paper gives one set of values for both. Toy's
variants are Game's too, and so are its settings under ``strict``, but that validation looks from
epoch 21 on, where GRU4Rec is at its best here, and that NNS alone, SASRec's best here, is trained
as well. The authors' one mixed log has Toy before Game within a day. docs/game.md has times and
figures.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(variant: str = "tuned") -> ConfigDict:
    """Returns the config; ``variant`` is one of Toy's, with or without ``variant=``."""
    toy = runpy.run_path(str(Path(__file__).with_name("toy.py")))["get_config"]
    config = toy(variant)
    config.name = "game"
    config.data.target, config.data.auxiliary = config.data.auxiliary, config.data.target
    config.data.auxiliary_first = True
    if config.strict_overrides:
        own = {
            "encoder.first_evaluation": 21,
            "encoder.evaluate_every": 3,
            "encoder.variants": ("base", "nns", "nns+dpa", "hbr+nns+dpa"),
        }
        config.strict_overrides = tuple({**dict(config.strict_overrides), **own}.items())
    return config
