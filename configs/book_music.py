"""The paper's cross-domain task Music to Book: both logs in time order, Book recommended.

  python -m pdrec_jax.prepare --dataset=douban --out=data
  python -m pdrec_jax.main --config=configs/book_music.py
  python -m pdrec_jax.main --config=configs/book_music.py:variant=paper
  python -m pdrec_jax.main --config=configs/book_music.py:variant=times

All models are trained over both catalogues and ranked on Book's items. The authors publish no
settings of this task: Book's are taken. As for Music, behaviours are weighed by position and the
diffusion model is T-DiffRec, but in the variants ``times`` and ``paper-times``.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(variant: str = "readme") -> ConfigDict:
    """Returns the config; ``variant`` is one of Music's, with or without ``variant=``."""
    other = runpy.run_path(str(Path(__file__).with_name("music.py")))["get_config"]
    config = other(variant)
    config.name = "book_music"
    data = config.data
    data.target, data.auxiliary = data.auxiliary, data.target
    data.time, data.auxiliary_time = data.auxiliary_time, data.time
    data.auxiliary_first = False
    data.mixed = True
    return config
