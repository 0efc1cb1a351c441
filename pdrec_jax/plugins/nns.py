"""Noise-free negative sampling: negatives from the items that the preferences rank low (Eq. 3).

PDRec, Ma et al., AAAI 2024, Sec. 4.5. The pool of each user is cut in ``diffusion.preferences``;
here a negative is drawn from it for every position.
"""

from jax import Array

from pdrec_jax.rows import draw_of_row


def draw_negatives(key: Array, pools: Array, users: Array) -> Array:
    """Draws one negative a position, uniformly from the sample that was kept of the user's pool.

    Args:
      key: a jax key.
      pools: [U, R] int32, item ids.
      users: [...] int32, the user of each position.

    Returns:
      [...] int32.
    """
    return draw_of_row(key, pools, users)
