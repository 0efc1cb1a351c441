"""The training objective of an encoder with any of the plugins (PDRec, 2024, Eq. 4-6).

``L = mean w BCE(s+, 1) + (1/K) sum_k mean BCE(s-_k, 0) + omega_d mean BCE(picks, 1)``: means over
the positions that have a next item, K negatives a position: with NNS uniform and safe ones.
``positive_weight``, which is not in the paper, is a factor of the first term: HBR's weights shift
the balance of positives and negatives too, and a base to compare it with must be able to as well.
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
    count = jnp.maximum(jnp.sum(valid, dtype=positive.dtype), 1)

    def mean(terms: Array) -> Array:
        return jnp.sum(jnp.where(valid, terms, 0.0)) / count

    hit = jax.nn.softplus(-positive)
    loss = positive_weight * mean(hit if weights is None else hit * weights)
    return loss + sum(mean(jax.nn.softplus(n)) for n in negatives) / len(negatives)


def total_loss(
    positive: Array,
    negatives: Sequence[Array],
    valid: Array,
    weights: Array | None,
    soft: Array | None,
    *,
    fine: int = 0,
    augmentation_weight: float = 0.0,
    positive_weight: float = 1.0,
) -> Array:
    """The whole objective, [].

    Args:
      positive: see ``sequence_loss``; so are the next three.
      negatives: see there.
      valid: see there.
      weights: see there.
      soft: [B, M] logits of DPA's candidates; None without DPA.
      fine: N.
      augmentation_weight: omega_d.
      positive_weight: see ``sequence_loss``.
    """
    loss = sequence_loss(positive, negatives, valid, weights, positive_weight)
    if soft is None:
        return loss
    return loss + augmentation_weight * augmentation_loss(soft, fine)
