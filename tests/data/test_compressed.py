"""Compressed rows against lists of lists."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pdrec_jax.data.compressed import gathered, offsets_of


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=6), st.data())
def test_rows_are_put_one_behind_the_other(rows, data):
    column = np.array([entry for row in rows for entry in row], np.int32)
    offsets = offsets_of(np.array([len(row) for row in rows], np.int32))
    assert offsets.dtype == np.int64
    assert [column[a:b].tolist() for a, b in itertools.pairwise(offsets)] == rows
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8)) if rows else []
    users = np.array(chosen, np.int64)
    # The last entries of each alone, as recommenders read them.
    lengths = np.minimum(np.diff(offsets)[users], 3)
    own, entries = gathered(offsets[users + 1] - lengths, lengths)
    expected = [
        rows[user][len(rows[user]) - size :] for user, size in zip(chosen, lengths, strict=True)
    ]
    assert column[entries].tolist() == [entry for row in expected for entry in row]
    assert np.diff(own).tolist() == lengths.tolist()
