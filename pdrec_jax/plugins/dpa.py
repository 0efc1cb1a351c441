"""Diffusion-based positive augmentation: likely unobserved items as soft positives (Eq. 6).

PDRec, Ma et al., AAAI 2024, Sec. 4.4. The diffusion model proposes M candidates (coarse), the
encoder as it stands picks the N of them that it scores highest (fine), for the state after a user's
last item.

The other form is ours: at every position some of the candidates are drawn, whatever the encoder
makes of them, as NNS draws its negatives. Picks confirm what the encoder believes already; draws
tell it what the diffusion model knows.
"""

import jax
import jax.numpy as jnp
from jax import Array

from pdrec_jax.rows import draw_of_row


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


def draw_positives(key: Array, candidates: Array, users: Array, *, by_rank: bool = False) -> Array:
    """Draws one candidate a position from the user's.

    Args:
      key: a jax key.
      candidates: [U, M] int32, item ids, the likeliest first.
      users: [...] int32, the user of each position.
      by_rank: draw rank r of 1 .. M with probability log(1 + 1/r) / log(1 + M), which is nearly in
        proportion to 1/r (Zipf's law), in place of all alike.

    Returns:
      [...] int32.
    """
    if not by_rank:
        return draw_of_row(key, candidates, users)
    most = candidates.shape[1]
    # The whole part of a log-uniform number of 1 .. M + 1; rounding can reach the upper end.
    rank = jnp.exp(jax.random.uniform(key, users.shape) * jnp.log(most + 1.0)).astype(jnp.int32)
    return candidates[users, jnp.clip(rank, 1, most) - 1]
