"""Compressed rows: row r of a column is its entries from ``offsets[r]`` to ``offsets[r + 1]``."""

import numpy as np
from numpy.typing import NDArray


def offsets_of(lengths: NDArray) -> NDArray[np.int64]:
    """The offsets [R+1] of rows of these lengths [R], from 0."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def gathered(
    begins: NDArray[np.integer], lengths: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Puts rows, or parts of them, one behind the other.

    Args:
      begins: [B] where each begins in the column; of an empty one anything.
      lengths: [B].

    Returns:
      their offsets [B+1] among what is put together, and the N entries of the column.
    """
    offsets = offsets_of(lengths)
    return offsets, np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], lengths)
