"""Interaction vectors: the weight of each behaviour (Eq. 1 of PDRec) and their sparse batches.

A vector has one slot per item id (slot 0, the padding id, stays empty) and about a dozen non-zeros,
so it travels as a list of (slot, weight) and becomes dense on the device only where it must.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdrec_jax.data.compressed import gathered, offsets_of
from pdrec_jax.data.scratch import Column, is_mapped, user_blocks
from pdrec_jax.errors import UserError

TIE_MODES = ("AllOne", "AllLinear", "MinMax")
_TOKEN_STEP = 512


def interval_weights(
    times: np.ndarray, offsets: np.ndarray, w_min: float, w_max: float, ties: str = "AllOne"
) -> np.ndarray:
    """Weights behaviours by the time since the user's first one (PDRec, 2024, Eq. 1).

    ``w_j = w_min + (t_j - t_1) / (t_p - t_1) (w_max - w_min)``. T-DiffRec (Wang et al., 2023) is
    the same with positions in place of times.

    Args:
      times: [E], non-decreasing within a user.
      offsets: [U+1], CSR.
      w_min: weight of the earliest behaviour.
      w_max: weight of the latest.
      ties: where all times of a user are equal: ``AllOne`` gives w_max, ``AllLinear`` a line from
        w_min to w_max in log order (one behaviour: w_min), ``MinMax`` gives w_min.

    Returns:
      [E] float32.
    """
    if ties not in TIE_MODES:
        raise UserError(f"diffusion.ties: expected one of {TIE_MODES}, got {ties!r}")
    lengths = np.diff(offsets)
    users = np.repeat(np.arange(len(lengths)), lengths)
    filled = lengths > 0
    first, last = np.zeros(len(lengths)), np.zeros(len(lengths))
    first[filled] = times[offsets[:-1][filled]]
    last[filled] = times[offsets[1:][filled] - 1]
    span = (last - first)[users]
    position = np.arange(len(users)) - offsets[:-1][users]
    if ties == "AllOne":
        equal = np.ones(len(users))
    elif ties == "AllLinear":
        equal = position / np.maximum(lengths[users] - 1, 1)
    else:
        equal = np.zeros(len(users))
    share = np.where(span > 0, (times - first[users]) / np.where(span > 0, span, 1), equal)
    return (w_min + share * (w_max - w_min)).astype(np.float32)


def positions(offsets: np.ndarray) -> np.ndarray:
    """Returns each event's position in its user's log, [E] float64, to stand in for times."""
    return (np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))).astype(np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class InteractionVectors:
    """The sparse vectors of U users, without repeated slots.

    Attributes:
      offsets: [U+1] int64, CSR.
      slots: [N] int32.
      weights: [N] float32.
      num_slots: I, the length of a vector.
    """

    offsets: np.ndarray
    slots: np.ndarray
    weights: np.ndarray
    num_slots: int

    @property
    def lengths(self) -> np.ndarray:
        """Non-zeros of each user, [U]."""
        return np.diff(self.offsets)

    def lengths_of(self, users: np.ndarray) -> np.ndarray:
        """Non-zeros of some users, [...], at a cost of these alone."""
        return self.offsets[users + 1] - self.offsets[users]


def build_vectors(
    offsets: np.ndarray,
    items: np.ndarray,
    times: np.ndarray | None,
    num_slots: int,
    *,
    w_min: float,
    w_max: float,
    ties: str,
) -> InteractionVectors:
    """Builds the vectors of a log; a repeated item keeps its last weight.

    Of a log that is mapped they are built in blocks of users, and mapped as well.

    Args:
      offsets: [U+1], CSR.
      items: [E] int32 in [1, num_slots).
      times: [E], or None for positions.
      num_slots: I.
      w_min: see ``interval_weights``.
      w_max: see ``interval_weights``.
      ties: see ``interval_weights``.
    """
    build = functools.partial(_build, num_slots=num_slots, w_min=w_min, w_max=w_max, ties=ties)
    if not is_mapped(items):
        return build(offsets, items, times)
    whole = MappedVectors(num_slots)
    for first, last in user_blocks(offsets):
        events = slice(offsets[first], offsets[last])
        some = None if times is None else times[events]
        whole.add(build(offsets[first : last + 1] - events.start, items[events], some))
    return whole.finish()


class MappedVectors:
    """Vectors that grow by blocks of users and lie on the disk, see ``data.scratch``.

    Args:
      num_slots: I.
    """

    def __init__(self, num_slots: int):
        self._num_slots = num_slots
        self._lengths: list[np.ndarray] = []
        self._slots, self._weights = Column(np.int32), Column(np.float32)

    def add(self, block: InteractionVectors) -> None:
        """Appends the vectors of the next users."""
        self._lengths.append(block.lengths)
        self._slots.add(block.slots)
        self._weights.add(block.weights)

    def finish(self) -> InteractionVectors:
        """Returns the vectors of all users, mapped."""
        offsets = offsets_of(np.concatenate(self._lengths))
        slots, weights = self._slots.finish(), self._weights.finish()
        return InteractionVectors(offsets, slots, weights, self._num_slots)


def _build(
    offsets: np.ndarray,
    items: np.ndarray,
    times: np.ndarray | None,
    num_slots: int,
    *,
    w_min: float,
    w_max: float,
    ties: str,
) -> InteractionVectors:
    """``build_vectors`` of a log, or of a block of its users."""
    times = positions(offsets) if times is None else times
    weights = interval_weights(times, offsets, w_min, w_max, ties)
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    # Of equal (user, item) pairs the last one in log order stays.
    order = np.lexsort((np.arange(len(items)), items, users))
    u, i = users[order], items[order]
    final = np.ones(len(order), bool)
    final[:-1] = (u[1:] != u[:-1]) | (i[1:] != i[:-1])
    kept = np.sort(order[final])
    counts = np.bincount(users[kept], minlength=len(offsets) - 1)
    return InteractionVectors(
        offsets_of(counts),
        items[kept].astype(np.int32),
        weights[kept],
        num_slots,
    )


@dataclasses.dataclass(frozen=True)
class SparseBatch:
    """The vectors of B rows as P tokens; unused tokens have row B and weight 0.

    On a mesh B is what a place has of the batch.

    Attributes:
      slots: [..., P] int32.
      rows: [..., P] int32, non-decreasing.
      weights: [..., P] float32.
    """

    slots: Array | np.ndarray
    rows: Array | np.ndarray
    weights: Array | np.ndarray


jax.tree_util.register_dataclass(
    SparseBatch, data_fields=["slots", "rows", "weights"], meta_fields=[]
)


def token_budget(vectors: InteractionVectors, users: np.ndarray) -> int:
    """Returns P: enough for each of the batches ``users`` [..., B], rounded up.

    The rounding lets the next epoch's batches reuse the compiled step.
    """
    most = int(vectors.lengths_of(users).sum(axis=-1).max(initial=1))
    return -(-most // _TOKEN_STEP) * _TOKEN_STEP


def gather_batch(vectors: InteractionVectors, users: np.ndarray, tokens: int) -> SparseBatch:
    """Collects the tokens of a batch on the host.

    Args:
      vectors: all users.
      users: [B] indices.
      tokens: P, at least the number of their non-zeros.
    """
    lengths = vectors.lengths_of(users)
    rows = np.repeat(np.arange(len(users)), lengths)
    _, index = gathered(vectors.offsets[users], lengths)
    total = len(index)
    slots = np.zeros(tokens, np.int32)
    weights = np.zeros(tokens, np.float32)
    padded_rows = np.full(tokens, len(users), np.int32)
    slots[:total], weights[:total] = vectors.slots[index], vectors.weights[index]
    padded_rows[:total] = rows
    return SparseBatch(slots, padded_rows, weights)


def densify(batch: SparseBatch, size: int, num_slots: int) -> Array:
    """Scatters a batch to dense vectors [size, num_slots] float32 on the device."""
    dense = jnp.zeros((size, num_slots), jnp.float32)
    return dense.at[batch.rows, batch.slots].set(batch.weights, mode="drop")


def sparse_product(batch: SparseBatch, size: int, kernel: Array) -> Array:
    """Multiplies a sparse batch by ``kernel`` [I, H]: an embedding-bag sum, [size, H]."""
    terms = kernel[batch.slots] * batch.weights[:, None]
    return jax.ops.segment_sum(terms, batch.rows, num_segments=size, indices_are_sorted=True)
