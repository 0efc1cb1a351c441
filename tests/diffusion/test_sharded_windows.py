"""Where a window and a device's part of the slots meet; the rest is in tests/test_sharding.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.diffusion.sharded_windows import overlap, place_head
from pdrec_jax.diffusion.windows import choose_head
from pdrec_jax.sharding import mesh_of


@pytest.mark.parametrize(("slots", "parts", "width"), [(24, 3, 5), (24, 6, 9), (24, 1, 7)])
def test_parts_have_each_slot_of_a_window_once(slots, parts, width) -> None:
    own = slots // parts
    for begin in range(slots - width + 1):
        found = []
        for part in range(parts):
            meet = overlap(jnp.int32(begin), width, jnp.int32(part * own), own)
            assert meet.column.shape == meet.held.shape == (min(width, own),)
            assert 0 <= int(meet.begin) <= own - meet.held.shape[0]
            place = int(meet.begin) + np.arange(meet.held.shape[0])
            found += [*(part * own + place)[meet.held]]
            # A column is the place in the window.
            np.testing.assert_array_equal(begin + meet.column, part * own + place)
        assert found == [*range(begin, begin + width)]


def test_a_part_has_its_own_slots_of_the_head() -> None:
    mesh = mesh_of(jax.devices()[:1], 1, 1)
    head = choose_head(np.array([0, 5, 1, 7, 7]), 3)
    held = jax.tree.map(lambda part: np.asarray(part).tolist(), place_head(head, mesh))
    assert held.slots == [1, 3, 4]
    assert held.inside == [False, True, False, True, True]
    assert (held.first, held.length) == ([0], [3])
