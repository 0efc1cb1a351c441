"""Historical behavior reweighting: observed items that the preferences doubt weigh less (Eq. 2).

PDRec, Ma et al., AAAI 2024, Sec. 4.3.
"""

import jax.numpy as jnp
from jax import Array

from pdrec_jax.errors import UserError

FLOORS = ("observed", "shifted")


def behaviour_weights(
    scores: Array,
    observed: Array,
    *,
    rank_weight: float,
    clip: float,
    scale: float,
    floor: str = "observed",
    padding: Array | None = None,
    max_length: int | None = None,
) -> Array:
    """Turns the preference scores of each user's training targets into loss weights.

    Min-max scaled to mean 1, ``omega_s``; mixed with the rank term ``(1 + n - r) / n`` (r = 1 is
    the highest of n scores, of equal ones the later) by omega_r; clipped to [0, c_w]; times
    omega_f. Where all scores of a user are equal to the floor, each weighs 1 before clipping.

    Args:
      scores: [U, L] scores of the targets, anything where not observed.
      observed: [U, L] bool, which cells are targets.
      rank_weight: omega_r, in [0, 1].
      clip: c_w.
      scale: omega_f.
      floor: what maps to 0. ``observed``: the lowest score (Eq. 2), so that the most doubted
        behaviour weighs ``omega_r omega_f / n``, by its rank alone. ``shifted``: what the public
        code does, half the lowest score m if m > 0, else 1.5 m, with m the minimum over the targets
        and the padding item; only where the row has padding, fewer than ``max_length`` targets.
      padding: [U], score of the padding item, for ``shifted``.
      max_length: L of the encoder, for ``shifted``.

    Returns:
      [U, L] float32, 0 where not observed.

    Raises:
      UserError: an unknown floor.
    """
    count = jnp.sum(observed, axis=1)
    size = count.astype(jnp.float32)
    lowest = jnp.min(jnp.where(observed, scores, jnp.inf), axis=1)
    if floor == "observed":
        base = lowest
    elif floor == "shifted":
        if padding is None or max_length is None:
            raise UserError("hbr: the shifted floor needs the padding item's score and a length")
        reach = jnp.minimum(lowest, padding)
        base = jnp.where(count < max_length, reach * jnp.where(reach > 0, 0.5, 1.5), lowest)
    else:
        raise UserError(f"hbr.floor: expected one of {FLOORS}, got {floor!r}")
    highest = jnp.max(jnp.where(observed, scores, -jnp.inf), axis=1)
    span = highest - base
    flat = (span <= 0)[:, None]
    share = (scores - base[:, None]) / jnp.where(span > 0, span, 1)[:, None]
    share = jnp.where(observed, share, 0.0)
    total = jnp.sum(share, axis=1)
    share = share * (size / jnp.where(total > 0, total, 1))[:, None]

    # Rank from below: how many targets score lower, or the same and come earlier, plus itself.
    shown = jnp.where(observed, scores, jnp.inf)
    order = jnp.argsort(jnp.argsort(shown, axis=1, stable=True), axis=1, stable=True) + 1
    rank = order.astype(jnp.float32) / jnp.maximum(size, 1)[:, None]
    mixed = jnp.where(flat, 1.0, share * (1 - rank_weight) + rank * rank_weight)
    return jnp.where(observed, jnp.clip(mixed, 0.0, clip) * scale, 0.0).astype(jnp.float32)
