"""CL4SRec: SASRec with a contrastive loss over views of each history (Xie et al., ICDE 2022).

A history is cropped, masked or reordered, twice; the two views of a user should end in states that
are alike, and unlike those of the batch's other users (NT-Xent, with inner products and no
projection head). The paper tunes its rates by data set. The defaults here, ``crop`` 0.6, ``mask``
0.3 and ``reorder`` 0.6, are those of the usual worked example of the three operators;
``contrast_weight`` 0.1 and ``contrast_temperature`` 1 are those of the public reimplementation
github JamZheng/CL4SRec-pytorch.
"""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

from pdrec_jax.encoders.layers import Rows, xavier_normal
from pdrec_jax.encoders.sasrec import SASRec
from pdrec_jax.random_bits import hashed_bits

_VIEWS = 2
_CROP, _MASK, _REORDER = range(3)


class CL4SRec(SASRec):
    """SASRec with views; its table has one row more, for the masked item.

    Args:
      config: section ``encoder``: as for SASRec, and crop, mask, reorder, contrast_weight,
        contrast_temperature.
      num_items: I.
      rngs: source of the initial values.
    """

    ends_of_views: ClassVar[bool] = True

    def __init__(self, config: ConfigDict, num_items: int, *, rngs: nnx.Rngs):
        super().__init__(config, num_items, rngs=rngs)
        self.max_length, self.masked = config.max_length, num_items + 1
        self.rates = (config.crop, config.mask, config.reorder)
        self.weight, self.temperature = config.contrast_weight, config.contrast_temperature
        fans = (num_items + 2, config.width)
        self.item_embedding = nnx.Param(xavier_normal(rngs.params(), fans, fans))

    def views(self, rows: Rows, key: Array) -> tuple[Rows, ...]:
        """Draws two views of each history, each by an operator drawn anew."""
        return tuple(
            augment(rows, one, self.rates, self.max_length, self.masked)
            for one in jax.random.split(key, _VIEWS)
        )

    def own_loss(self, states: Sequence[Array], views: Sequence[Rows], users: Array) -> Array:
        """The contrastive loss between the last states of the views, weighted."""
        ends = [
            last_states(s, v, len(users), self.max_length)
            for s, v in zip(states, views, strict=True)
        ]
        first, second = (end for end, _ in ends)
        loss = contrastive_loss(first, second, ends[0][1], users, self.temperature)
        return self.weight * loss


def augment(
    rows: Rows, key: Array, rates: tuple[float, float, float], max_length: int, masked: int
) -> Rows:
    """Crops, masks or reorders each history of some rows, within its cells.

    Of n items, a crop keeps ``floor(crop n)`` neighbours (one at least), a mask hides ``floor(mask
    n)``, a reordering shuffles ``floor(reorder n)`` neighbours.

    Args:
      rows: R rows of L cells.
      key: of this view.
      rates: crop, mask and reorder.
      max_length: of a history.
      masked: id of the masked item.

    Returns:
      rows of the same cells; a cropped history leaves its last cells empty.
    """
    columns = jnp.broadcast_to(jnp.arange(rows.items.shape[1])[None, :], rows.items.shape)
    place = rows.position - rows.pads  # 0 for the first item of a history
    length = max_length - rows.pads
    first = jnp.maximum(columns - place, 0)
    occupied = rows.items > 0

    def of_history(number: int) -> Array:
        bits = hashed_bits(jax.random.fold_in(key, number), rows.items.shape)
        return jnp.take_along_axis(bits, first, axis=1)

    operator = of_history(0) % 3
    crop, mask, reorder = (operator == number for number in (_CROP, _MASK, _REORDER))
    sizes = np.floor(np.outer(rates, np.arange(max_length + 1)) + 1e-9).astype(np.int32)
    sizes[_CROP] = np.maximum(sizes[_CROP], 1)
    size = jnp.asarray(sizes)[operator, length]
    starts = jnp.maximum(length - size + 1, 1).astype(jnp.uint32)
    start = (of_history(1) % starts).astype(jnp.int32)

    # One sort shuffles the chosen neighbours and leaves the others: where a whole history is
    # shuffled, the first few cells of it are a random choice of cells.
    chosen = mask | (reorder & (place >= start) & (place < start + size))
    block = jnp.where(occupied & chosen, first + jnp.where(mask, 0, start), columns)
    bits = hashed_bits(jax.random.fold_in(key, 2), rows.items.shape)
    *_, shuffled = jax.lax.sort((block, bits, columns), dimension=1, num_keys=2)

    source = jnp.where(crop, columns + start, jnp.where(reorder, shuffled, columns))
    items = jnp.take_along_axis(rows.items, jnp.minimum(source, columns.shape[1] - 1), axis=1)
    items = jnp.where(mask & (shuffled - first < size), masked, items)
    items = jnp.where(occupied & (~crop | (place < size)), items, 0)
    pads = jnp.where(crop, max_length - size, rows.pads)
    return Rows(items, rows.segment, jnp.clip(pads + place, 0, max_length - 1), pads)


def last_states(states: Array, rows: Rows, users: int, max_length: int) -> tuple[Array, Array]:
    """The state after the last item of each history.

    Args:
      states: [C, D].
      rows: [C] cells.
      users: B.
      max_length: a history's last item has the position before it.

    Returns:
      states [B, D], any where a history has no item; whether it has one, [B].
    """
    last = (rows.items > 0) & (rows.position == max_length - 1)
    owner = jnp.where(last, rows.segment, users)
    cells = jnp.arange(len(states), dtype=jnp.int32)
    cell = jnp.full(users + 1, -1, jnp.int32).at[owner].max(cells)[:users]
    return states[jnp.maximum(cell, 0)], cell >= 0


def contrastive_loss(
    first: Array, second: Array, present: Array, users: Array, temperature: float
) -> Array:
    """NT-Xent (Chen et al., 2020) with inner products: a view finds the other one of its pair.

    It is held against the views of other users: a user that a batch holds twice has two pairs,
    which are not told apart.

    Args:
      first: [B, D], a view of each history.
      second: [B, D], another one.
      present: [B] bool, which have any.
      users: [B], of the histories.
      temperature: divides the products.

    Returns:
      the mean over all views of those present, [].
    """
    count = len(first)
    both, there = jnp.concatenate([first, second]), jnp.concatenate([present, present])
    logits = jnp.dot(both, both.T) / temperature
    owner = jnp.concatenate([users, users])
    other = jnp.roll(jnp.arange(2 * count), count)[:, None]
    pair = jnp.arange(2 * count)[None, :] == other
    same = (owner[:, None] == owner[None, :]) & ~pair
    logits = jnp.where(same | ~there[None, :], -1e9, logits)
    own = jnp.take_along_axis(logits, other, axis=1)[:, 0]
    terms = jnp.where(there, jax.nn.logsumexp(logits, axis=1) - own, 0)
    return jnp.sum(terms) / jnp.maximum(jnp.sum(there, dtype=terms.dtype), 1)
