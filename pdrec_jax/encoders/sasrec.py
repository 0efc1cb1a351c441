"""SASRec (Kang and McAuley, 2018) in the form that PDRec's public code trains.

Queries are layer-normed, keys and values are not; both residuals start from the normed side.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

from pdrec_jax.encoders.encoder import Encoder
from pdrec_jax.encoders.ends import Ends, Slots, slots_of
from pdrec_jax.encoders.layers import (
    Attention,
    FeedForward,
    LayerNorm,
    Rows,
    dropout,
    visible_cells,
    xavier_normal,
)


class Block(nnx.Module):
    """One self-attention block."""

    def __init__(self, width: int, heads: int, rate: float, *, rngs: nnx.Rngs):
        self.attention_norm = LayerNorm(width)
        self.attention = Attention(width, heads, rate, rngs=rngs)
        self.forward_norm = LayerNorm(width)
        self.forward = FeedForward(width, rate, rngs=rngs)

    def __call__(
        self, x: Array, visible: Array, pads: Array, occupied: Array, key: Array | None
    ) -> Array:
        """Maps [R, L, D] to [R, L, D], zero in empty cells; see ``Attention`` for the rest."""
        keys = (None, None) if key is None else jax.random.split(key)
        queries = self.attention_norm(x)
        x = queries + self.attention(queries, x, visible, pads, keys[0])
        x = self.forward(self.forward_norm(x), keys[1])
        return jnp.where(occupied[:, :, None], x, 0)

    def of_ends(self, x: Array, slots: Slots, pads: Array, key: Array | None) -> Array:
        """The same of the ends of S histories alone, [S, D].

        Args:
          x: [R, L, D], the rows of these histories.
          slots: of their cells.
          pads: [R, L].
          key: for dropout.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        cells = x.reshape(-1, x.shape[-1])
        queries = self.attention_norm(cells[slots.last][None])[0]
        pads = pads.reshape(-1)[slots.last]
        ends = queries + self.attention.of_ends(queries, cells, slots, pads, keys[0])
        return self.forward.of_cells(self.forward_norm(ends[None])[0], slots.cells, keys[1])

    @property
    def as_here(self) -> bool:
        """Whether nothing of it has been derived from, so that ``of_ends`` is what it does."""
        parts = ((self, Block), (self.attention, Attention), (self.forward, FeedForward))
        return all(type(part) is kind for part, kind in parts)


class SASRec(Encoder):
    """A causal transformer over a user's history.

    Args:
      config: section ``encoder``: width, blocks, heads, dropout, max_length, attend_padding.
      num_items: I.
      rngs: source of the initial values.
    """

    def __init__(self, config: ConfigDict, num_items: int, *, rngs: nnx.Rngs):
        width, length = config.width, config.max_length
        self.width, self.rate = width, config.dropout
        self.attend_padding = config.attend_padding
        fans = (num_items + 1, width)
        self.item_embedding = nnx.Param(xavier_normal(rngs.params(), fans, fans))
        self.position_embedding = nnx.Param(
            xavier_normal(rngs.params(), (length, width), (length, width))
        )
        self.blocks = nnx.List(
            [Block(width, config.heads, config.dropout, rngs=rngs) for _ in range(config.blocks)]
        )
        self.last_norm = LayerNorm(width)

    def __call__(
        self, vectors: Array, rows: Rows, key: Array | None = None, ends: Ends | None = None
    ) -> Array:
        """Encodes packed histories.

        Args:
          vectors: [R, L, D], the embedded items.
          rows: R rows of L cells.
          key: for dropout; None in evaluation.
          ends: rows of which the state of each history's last cell is read and no other; all cells
            of the history then hold it, NaN where there are more histories than it says.

        Returns:
          states [R, L, D]: what each cell's history, itself included, predicts next.
        """
        count = len(self.blocks) + 1
        keys = [None] * count if key is None else list(jax.random.split(key, count))
        occupied = rows.items > 0
        x = vectors * self.width**0.5 + self.position_embedding[...][rows.position]
        x = jnp.where(occupied[:, :, None], dropout(x, self.rate, keys[0]), 0)
        visible = visible_cells(rows.segment, occupied)
        pads = rows.pads.astype(x.dtype) if self.attend_padding else jnp.zeros(rows.pads.shape)
        for block, block_key in zip(self.blocks[:-1], keys[1:-1], strict=True):
            x = block(x, visible, pads, occupied, block_key)
        final, final_key = self.blocks[-1], keys[-1]
        if ends is None or not x[ends.first :].size or not final.as_here:
            return self.last_norm(final(x, visible, pads, occupied, final_key))
        first = ends.first
        slots = slots_of(rows.segment, occupied, ends)
        last = final.of_ends(x[first:], slots, pads[first:], final_key)
        last = jnp.pad(last, ((0, 1), (0, 0)))  # behind the others, what an empty cell has
        last = self.last_norm(last[None])[0]
        states = last.at[slots.of_cell].get(mode="fill", fill_value=jnp.nan)
        states = states.reshape(x[first:].shape)
        if not first:
            return states
        whole = final(x[:first], visible[:first], pads[:first], occupied[:first], final_key)
        return jnp.concatenate([self.last_norm(whole), states])
