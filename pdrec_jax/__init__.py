"""PDRec, the plug-in diffusion model for sequential recommendation, in JAX.

Nothing is imported here, so that `import pdrec_jax` costs nothing: take what you need from its
modules (`pdrec_jax.data.interactions`, `pdrec_jax.diffusion.preferences`, ...).
"""

__version__ = "0.1.0"
