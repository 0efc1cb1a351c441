"""The paper's cross-domain task Music to Book: both logs in time order, Book recommended.

  python -m pdrec_jax.prepare --dataset=douban --out=data
  python -m pdrec_jax.main --config=configs/book_music.py
  python -m pdrec_jax.main --config=configs/book_music.py:variant=paper

All models are trained over both catalogues and ranked on Book's items. The authors publish no
settings of this task: Book's are taken. Of Music only the order among Book's records is published,
so behaviours are weighed by position and the diffusion model is T-DiffRec.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(variant: str = "readme") -> ConfigDict:
    """Returns the config; ``variant`` is ``paper`` or ``readme``, with or without ``variant=``."""
    single = runpy.run_path(str(Path(__file__).with_name("book.py")))["get_config"]
    config = single(variant)
    config.name = "book_music"
    config.data.mixed = True
    config.diffusion.weighting = "position"
    return config
