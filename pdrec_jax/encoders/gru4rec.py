"""GRU4Rec (Hidasi et al., 2016) in the form that PDRec's public code trains.

One layer that runs over the left padding too, from a learned state; no dropout. The padding has a
vector of its own, drawn like the items' and never trained.
"""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

from pdrec_jax.data.batches import LANES, Layout
from pdrec_jax.encoders.encoder import Encoder
from pdrec_jax.encoders.layers import Rows, project, xavier_normal
from pdrec_jax.encoders.recurrence import PADDING_LANES, Stairs, run, step

_GATES = 3  # reset, update, new


class GRU4Rec(Encoder):
    """A gated recurrent unit over a user's history.

    Args:
      config: section ``encoder``: width, max_length.
      num_items: I.
      rngs: source of the initial values.
    """

    layout: ClassVar[Layout] = LANES

    def __init__(self, config: ConfigDict, num_items: int, *, rngs: nnx.Rngs):
        width, self.max_length = config.width, config.max_length
        bound = width**-0.5
        fans = (num_items + 1, width)
        self.item_embedding = nnx.Param(xavier_normal(rngs.params(), fans, fans))

        # The reference draws the three matrices as one of [3 D, D].
        def kernels() -> nnx.Param:
            shape = (_GATES, width, width)
            return nnx.Param(xavier_normal(rngs.params(), shape, (width, _GATES * width)))

        def biases() -> nnx.Param:
            shape = (_GATES, width)
            return nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))

        self.input, self.input_bias = kernels(), biases()
        # Of two gates only the sum of both biases counts, but Adam moves each by a step.
        self.hidden, self.hidden_bias = kernels(), biases()
        self.start = nnx.Param(xavier_normal(rngs.params(), (width,), (width, width)))

    def __call__(self, vectors: Array, rows: Rows, key: Array | None = None) -> Array:
        """Encodes rows of one length, see ``encode``."""
        return self.encode([vectors], [rows], key)[0]

    def encode(
        self, vectors: Sequence[Array], rows: Sequence[Rows], key: Array | None
    ) -> list[Array]:
        """Encodes rows that hold one history each, which ends with the row or a cell before.

        Args:
          vectors: of each group [R, L, D], the embedded items, shortest rows first.
          rows: of each group.
          key: unused, for there is no dropout.

        Returns:
          states of each group, [R, L, D].
        """
        del key
        padding = jax.lax.stop_gradient(self.item_embedding[...][0])
        longest_first = list(zip(vectors, rows, strict=True))[::-1]
        stairs = Stairs(
            tuple(r.items.shape[1] for _, r in longest_first),
            tuple(r.items.shape[0] for _, r in longest_first),
        )
        filled = [
            jnp.where(r.items[:, :, None] > 0, v, padding[None, None, :]) for v, r in longest_first
        ]
        cells = _by_step(stairs, filled, padding)
        hidden_bias = self.hidden_bias[...]
        bias = self.input_bias[...] + hidden_bias.at[2].set(0)
        kernels, hidden = tuple(self.input[...]), tuple(self.hidden[...])
        inputs = tuple(
            project(cells, k) + b[None, :] for k, b in zip(kernels, tuple(bias), strict=True)
        )
        start = self.start[...][None, :]
        ahead = step(start, tuple(gate[:1] for gate in inputs), hidden, hidden_bias[2])
        late = jnp.concatenate([_ends_early(r, self.max_length) for _, r in longest_first])
        states = run(stairs, jnp.concatenate([start, ahead]), late, inputs, hidden, hidden_bias[2])
        return _by_row(stairs, states)[::-1]


def _ends_early(rows: Rows, max_length: int) -> Array:
    """Whether a row's history ends one cell before the row, [R] bool.

    So it does where the last event is left out of the input, and the segment keeps its cell.
    """
    segment = jnp.sum(rows.segment == rows.segment[:, -1:], axis=1)
    return rows.pads[:, -1] + segment > max_length


def _by_step(stairs: Stairs, groups: Sequence[Array], padding: Array) -> Array:
    """Lays the cells of all rows [R, L, D] out step by step, those of the padding first, [C, D]."""
    phases = list(stairs.phases())
    parts: list[list[Array]] = [
        [jnp.broadcast_to(padding[None, None, :], (p.steps, PADDING_LANES, len(padding)))]
        for p in phases
    ]
    for number, cells in enumerate(groups):
        bounds = [stairs.lengths[number] - length for length in stairs.lengths[number + 1 :]]
        for phase, part in enumerate(jnp.split(jnp.swapaxes(cells, 0, 1), bounds), number):
            parts[phase].append(part)
    together = [jnp.concatenate(part, axis=1) for part in parts]
    return jnp.concatenate([part.reshape(-1, len(padding)) for part in together])


def _by_row(stairs: Stairs, states: Array) -> list[Array]:
    """The inverse of ``_by_step``."""
    phases = list(stairs.phases())
    parts: list[list[Array]] = [[] for _ in phases]
    for phase, cells in zip(
        phases, jnp.split(states, [p.cells.stop for p in phases[:-1]]), strict=True
    ):
        cells = cells.reshape(phase.steps, phase.lanes, -1)
        bounds = [PADDING_LANES + p.joined.start for p in phases[: phases.index(phase) + 1]]
        for number, part in enumerate(jnp.split(cells, bounds, axis=1)[1:]):
            parts[number].append(part)
    return [jnp.swapaxes(jnp.concatenate(part), 0, 1) for part in parts]
