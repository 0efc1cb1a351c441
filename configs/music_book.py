"""The paper's cross-domain task Book to Music: both logs in time order, Music recommended.

  python -m pdrec_jax.prepare --dataset=douban --out=data
  python -m pdrec_jax.main --config=configs/music_book.py
  python -m pdrec_jax.main --config=configs/music_book.py:variant=paper
  python -m pdrec_jax.main --config=configs/music_book.py:variant=times

All models are trained over both catalogues and ranked on Music's items. The authors publish no
settings of this task: Music's are taken. Behaviours are weighed by position, as for Music alone,
and by time in the variants ``times`` and ``paper-times``.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(variant: str = "readme") -> ConfigDict:
    """Returns the config; ``variant`` is one of Music's, with or without ``variant=``."""
    single = runpy.run_path(str(Path(__file__).with_name("music.py")))["get_config"]
    config = single(variant)
    config.name = "music_book"
    config.data.mixed = True
    return config
