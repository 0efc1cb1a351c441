"""PDRec, the plug-in diffusion model for sequential recommendation, in JAX.

Nothing heavy is imported here: take what you need from its modules
(`pdrec_jax.data.interactions`, `pdrec_jax.diffusion.preferences`, ...). Import one of them before
the first JAX computation, so that `xla_flags` can still take effect. `pdrec_jax.train`, which runs
the main job, and `pdrec_jax.Recommender`, which recommends with a trained run, are loaded when they
are first asked for.
"""

import os
from typing import TYPE_CHECKING

from pdrec_jax.starting import end_in_a_line, is_command
from pdrec_jax.xla_flags import keep_sums_right

if TYPE_CHECKING:
    from pdrec_jax.main import train
    from pdrec_jax.recommend.recommender import Recommender

__all__ = ["Recommender", "__version__", "train"]
__version__ = "0.1.0"

keep_sums_right(os.environ)
if is_command():
    end_in_a_line()


def __getattr__(name: str) -> object:
    if name == "Recommender":
        from pdrec_jax.recommend.recommender import Recommender

        return Recommender
    if name == "train":
        from pdrec_jax.main import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
