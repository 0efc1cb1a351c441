"""The training objective of an encoder with any of the plugins (PDRec, 2024, Eq. 4-6).

``L = mean w BCE(s+, 1) + (1/K) sum_k mean BCE(s-_k, 0) + omega_d mean BCE(picks, 1)``: means over
the positions that have a next item, K negatives a position: with NNS uniform and safe ones. The
picks are N a user, or are drawn at every position (``plugins.dpa``).

What a base that is compared with the plugins must be able to do as well, none of it in the paper:
``positive_weight`` is a factor of the first term, for HBR's weights shift the balance of positives
and negatives too; ``history_weight`` that of one more positive a position, drawn from the user's
own history, as DPA can draw them from the preferences.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from pdrec_jax.plugins.dpa import augmentation_loss


def cosine_logits(states: Array, embeddings: Array, temperature: float) -> Array:
    """Temperature-scaled inner products of vectors that have length 1.

    Args:
      states: [..., D].
      embeddings: [..., D].
      temperature: 5 on Toy, 10 on Book; not in the paper, but in its code.
    """
    return temperature * jnp.sum(states * embeddings, axis=-1)


def sequence_loss(
    positive: Array,
    negatives: Sequence[Array],
    valid: Array,
    weights: Array | None,
    positive_weight: float = 1.0,
) -> Array:
    """The first two terms of the loss, [].

    Args:
      positive: [...] logits of the next items.
      negatives: K arrays of the same shape, logits of the negatives.
      valid: same shape, bool, which positions have a next item.
      weights: same shape, HBR's; None for 1.
      positive_weight: factor of the positives' term.
    """
    hit = jax.nn.softplus(-positive)
    loss = positive_weight * _mean(hit if weights is None else hit * weights, valid)
    return loss + sum(_mean(jax.nn.softplus(n), valid) for n in negatives) / len(negatives)


def drawn_loss(logits: Sequence[Array], valid: Array) -> Array:
    """Mean binary cross-entropy of items that positions drew as positives against label 1, [].

    Args:
      logits: an array [...] for each item that a position has drawn.
      valid: [...] bool, the positions that count.
    """
    return sum((_mean(jax.nn.softplus(-one), valid) for one in logits), jnp.zeros(())) / len(logits)


def _mean(terms: Array, valid: Array) -> Array:
    """Mean over the positions that count, 0 where none does."""
    count = jnp.maximum(jnp.sum(valid, dtype=terms.dtype), 1)
    return jnp.sum(jnp.where(valid, terms, 0.0)) / count


def total_loss(
    positive: Array,
    negatives: Sequence[Array],
    valid: Array,
    weights: Array | None,
    soft: Array | None,
    likely: Sequence[Array] = (),
    *,
    fine: int = 0,
    augmentation_weight: float = 0.0,
    positive_weight: float = 1.0,
    history: Array | None = None,
    history_weight: float = 0.0,
) -> Array:
    """The whole objective, [].

    Args:
      positive: see ``sequence_loss``; so are the next three.
      negatives: see there.
      valid: see there.
      weights: see there.
      soft: [B, M] logits of the candidates that DPA picks from; None where it does not.
      likely: logits of what DPA drew at each position, arrays of the shape of ``positive``.
      fine: N.
      augmentation_weight: omega_d.
      positive_weight: see ``sequence_loss``.
      history: same shape as ``positive``, logits of items of the history; None without.
      history_weight: factor of their term.
    """
    loss = sequence_loss(positive, negatives, valid, weights, positive_weight)
    if history is not None:
        loss += history_weight * drawn_loss([history], valid)
    if soft is not None:
        loss += augmentation_weight * augmentation_loss(soft, fine)
    if likely:
        loss += augmentation_weight * drawn_loss(likely, valid)
    return loss
