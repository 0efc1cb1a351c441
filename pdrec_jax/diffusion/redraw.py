"""NNS's negatives drawn anew every few epochs, out of the whole pools (``nns.refresh_epochs``).

A sample of R that is drawn once shows an encoder the same few of a user's safe items again and
again. The pools themselves take a bit an item: of those any number of samples can be drawn, without
the scores or the model behind them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdrec_jax.data.batches import blocks
from pdrec_jax.diffusion.selection import draw_subset, nth_true

WORD = 32  # items of a pool that a number holds
_BLOCK = 4096


def words(num_items: int) -> int:
    """How many numbers hold the pool of one user."""
    return -(-num_items // WORD)


def packed(marks: np.ndarray) -> np.ndarray:
    """Packs marks [B, I] into words, the first mark in the lowest bit, [B, ``words(I)``] uint32."""
    full = np.pad(marks, ((0, 0), (0, -marks.shape[1] % WORD)))
    return np.packbits(full, axis=1, bitorder="little").view("<u4").astype(np.uint32)


def unpacked(pools: np.ndarray, num_items: int) -> np.ndarray:
    """The marks [B, I] bool of words [B, W] uint32."""
    octets = np.ascontiguousarray(pools.astype("<u4")).view(np.uint8)
    return np.unpackbits(octets, axis=1, bitorder="little")[:, :num_items].astype(bool)


@dataclasses.dataclass(frozen=True, eq=False)
class Redraws:
    """Negatives of each user, another sample of the pool every few epochs.

    A draw depends on the seed, the turn and the user alone, so that a resumed run, one on a mesh
    and one beside other seeds draw the same.

    Attributes:
      first: [U, R] int32, those of the first turn, see ``Preferences.negatives``.
      pools: [U, W] uint32, see ``Preferences.pools``.
      every: epochs that a turn lasts.
      seed: of the encoder.
      place: puts a sample where the steps read it.
    """

    first: np.ndarray
    pools: np.ndarray
    every: int
    seed: int
    place: Callable[[np.ndarray], Any] = np.asarray
    _placed: dict[int, Any] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def turn(self, epoch: int) -> int:
        """The number of an epoch's turn, from 0; epochs count from 1."""
        return (epoch - 1) // self.every

    def placed(self, turn: int) -> Any:
        """The sample of a turn, placed; that of the last one asked for is kept."""
        if turn not in self._placed:
            self._placed.clear()
            self._placed[turn] = self.place(self.negatives(turn))
        return self._placed[turn]

    def negatives(self, turn: int) -> np.ndarray:
        """The sample of a turn, [U, R] int32; users without a pool have zeros."""
        if turn == 0:
            return self.first
        out = np.zeros_like(self.first)
        index = np.flatnonzero(self.pools.any(axis=1))
        block = min(_BLOCK, max(1, len(index)))
        key = jax.random.fold_in(jax.random.key(self.seed), turn)
        for number, rows in enumerate(blocks(index, block)):
            real = index[number * block :][:block]
            drawn = _draw(key, rows, self.pools[rows], self.first.shape[1])
            out[real] = np.asarray(drawn)[: len(real)]
        return out


@functools.partial(jax.jit, static_argnums=3)
def _draw(key: Array, users: Array, pools: Array, count: int) -> Array:
    keys = jax.vmap(lambda user: jax.random.fold_in(key, user))(users)
    sizes = jnp.sum(jax.lax.population_count(pools).astype(jnp.int32), axis=1)
    ordinals = draw_subset(keys, jnp.maximum(sizes, 1), count, pools.shape[1] * WORD)
    return nth_true(pools, ordinals) + 1
