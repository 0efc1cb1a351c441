"""Diffusion-based positive augmentation: likely unobserved items as soft positives (Eq. 6).

PDRec, Ma et al., AAAI 2024, Sec. 4.4. The diffusion model proposes M candidates (coarse), the
encoder as it stands picks the N of them that it scores highest (fine).
"""

import jax
import jax.numpy as jnp
from jax import Array


def pick(logits: Array, fine: int) -> Array:
    """Returns the encoder's N highest logits of each user's M candidates, [B, N].

    The gradient flows through the picked logits, as in the public code.

    Args:
      logits: [B, M].
      fine: N <= M.
    """
    return jax.lax.top_k(logits, fine)[0]


def augmentation_loss(logits: Array, fine: int) -> Array:
    """Mean binary cross-entropy of the picks against label 1, [].

    Args:
      logits: [B, M], all users of the batch, those without a training pair included.
      fine: N.
    """
    return jnp.mean(jax.nn.softplus(-pick(logits, fine)))
