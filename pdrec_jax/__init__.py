"""PDRec, the plug-in diffusion model for sequential recommendation, in JAX.

Nothing heavy is imported here: take what you need from its modules
(`pdrec_jax.data.interactions`, `pdrec_jax.diffusion.preferences`, ...). Import one of them before
the first JAX computation, so that `xla_flags` can still take effect.
"""

import os

from pdrec_jax.xla_flags import keep_sums_right

__version__ = "0.1.0"

keep_sums_right(os.environ)
