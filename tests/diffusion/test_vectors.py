"""Interaction vectors: the recorded weights, a plain loop as the twin, batches and products."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.data.readers import read_log
from pdrec_jax.data.splits import leave_one_out
from pdrec_jax.diffusion.vectors import (
    TIE_MODES,
    build_vectors,
    densify,
    gather_batch,
    interval_weights,
    positions,
    sparse_product,
    token_budget,
)
from pdrec_jax.errors import UserError


def random_log(seed: int, users: int = 30, items: int = 12, days: int = 6):
    """offsets, items with repeats, times with ties; some users without events."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 9, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    times = [np.sort(rng.integers(0, days, n)) * rng.integers(0, 2) for n in lengths]
    return (
        offsets,
        rng.integers(1, items, offsets[-1]).astype(np.int32),
        np.concatenate(times).astype(np.float64),
    )


def loop(offsets, items, times, w_min, w_max, ties) -> list[dict[int, float]]:
    """Each user's slots and weights, one event after the other."""
    users = []
    for begin, end in itertools.pairwise(offsets):
        vector, count = {}, end - begin
        for j in range(begin, end):
            first, last = times[begin], times[end - 1]
            if last > first:
                share = (times[j] - first) / (last - first)
            elif ties == "AllOne":
                share = 1.0
            elif ties == "AllLinear":
                share = (j - begin) / (count - 1) if count > 1 else 0.0
            else:
                share = 0.0
            vector[int(items[j])] = w_min + share * (w_max - w_min)
        users.append(vector)
    return users


def dense_of(vectors) -> np.ndarray:
    dense = np.zeros((len(vectors.offsets) - 1, vectors.num_slots), np.float32)
    for user, row in enumerate(dense):
        part = slice(vectors.offsets[user], vectors.offsets[user + 1])
        assert len(set(vectors.slots[part])) == len(vectors.slots[part])
        row[vectors.slots[part]] = vectors.weights[part]
    return dense


class TestIntervalWeights:
    def test_goldens(self, goldens):
        golden = goldens("scale_withminmax")
        compared = 0
        for key, expected in golden.items():
            if "/" not in key:
                continue
            name, ties, bounds = key.split("/")
            times = golden[name]
            w_min, w_max = map(float, bounds.split("_"))
            weights = interval_weights(
                times.astype(np.float64), np.array([0, len(times)]), w_min, w_max, ties
            )
            assert weights.dtype == np.float32
            np.testing.assert_allclose(weights, expected, rtol=1e-6, err_msg=key)
            compared += 1
        assert compared == 63

    @pytest.mark.parametrize("ties", TIE_MODES)
    def test_like_a_plain_loop(self, ties):
        offsets, items, times = random_log(0)
        expected = loop(offsets, np.arange(len(items)), times, 0.3, 1.2, ties)
        weights = interval_weights(times, offsets, 0.3, 1.2, ties)
        flat = np.array([weight for user in expected for weight in user.values()])
        np.testing.assert_allclose(weights, flat, rtol=1e-6)

    def test_positions_stand_in_for_times(self):
        offsets = np.array([0, 3, 3, 4])
        np.testing.assert_array_equal(positions(offsets), [0, 1, 2, 0])
        weights = interval_weights(positions(offsets), offsets, 0.5, 1.0)
        np.testing.assert_array_equal(weights, np.float32([0.5, 0.75, 1, 1]))

    def test_no_events(self):
        assert interval_weights(np.zeros(0), np.zeros(3, np.int64), 0.5, 1.0).shape == (0,)

    def test_unknown_mode(self):
        with pytest.raises(UserError, match="'Mean'"):
            interval_weights(np.zeros(1), np.array([0, 1]), 0.5, 1.0, "Mean")


class TestBuildVectors:
    @pytest.mark.parametrize("ties", TIE_MODES)
    @pytest.mark.parametrize("seed", range(3))
    def test_like_a_plain_loop(self, seed, ties):
        offsets, items, times = random_log(seed)
        vectors = build_vectors(offsets, items, times, 12, w_min=0.2, w_max=1, ties=ties)
        expected = np.zeros((30, 12))
        for row, user in zip(expected, loop(offsets, items, times, 0.2, 1, ties), strict=True):
            row[list(user)] = list(user.values())
        np.testing.assert_allclose(dense_of(vectors), expected, rtol=1e-6)
        assert vectors.slots.dtype == np.int32
        assert vectors.offsets.dtype == np.int64
        np.testing.assert_array_equal(vectors.lengths, (expected > 0).sum(axis=1))

    def test_a_repeated_item_keeps_its_last_weight(self):
        offsets, items = np.array([0, 4]), np.int32([5, 2, 5, 2])
        vectors = build_vectors(offsets, items, None, 7, w_min=0, w_max=3, ties="AllOne")
        np.testing.assert_array_equal(vectors.slots, [5, 2])
        np.testing.assert_array_equal(vectors.weights, np.float32([2, 3]))

    def test_pools(self, goldens):
        """The vectors that the reference fed to the reverse loop for its pools."""
        golden = goldens("pools")
        eligible = golden["eligible"] - 1
        offsets = np.concatenate([[0], np.cumsum(golden["train_len"])])
        vectors = build_vectors(
            offsets,
            golden["train_flat"].astype(np.int32),
            golden["train_ti_flat"].astype(np.float64),
            int(golden["itemnum"]) + 1,
            w_min=0.5,
            w_max=1.0,
            ties="AllOne",
        )
        dense = dense_of(vectors)[eligible]
        np.testing.assert_allclose(dense, golden["x_start_in"], rtol=1e-6)

    def test_sampler(self, goldens, real_data):
        """The first batch of the reference's sampler, on Toy."""
        golden = goldens("sampler_tidiffrec")
        split = leave_one_out(read_log(real_data / "amazon_toy.inter.gz", ids="integer"))
        users = np.searchsorted(split.train.user_ids, golden["u"])
        np.testing.assert_array_equal(split.train.user_ids[users], golden["u"])
        vectors = build_vectors(
            split.train.offsets,
            split.train.items,
            split.train.times,
            split.train.num_items + 1,
            w_min=0.5,
            w_max=1.0,
            ties="AllOne",
        )
        batch = gather_batch(vectors, users, token_budget(vectors, users))
        dense = np.asarray(densify(batch, 16, vectors.num_slots))
        expected = np.zeros_like(dense)
        rows, columns = golden["target_temp_rows"], golden["target_temp_cols"]
        expected[rows, columns] = golden["target_temp_vals"]
        assert np.count_nonzero(expected) == len(rows)
        np.testing.assert_allclose(dense, expected, rtol=1e-6)


class TestBatches:
    def batch(self, seed: int = 0):
        vectors = build_vectors(*random_log(seed), 12, w_min=0.2, w_max=1, ties="AllOne")
        users = np.random.default_rng(seed).integers(0, 30, 7)
        return vectors, users, gather_batch(vectors, users, token_budget(vectors, users))

    def test_densify(self):
        vectors, users, batch = self.batch()
        dense = jax.jit(densify, static_argnums=(1, 2))(batch, 7, 12)
        assert dense.dtype == jnp.float32
        np.testing.assert_array_equal(dense, dense_of(vectors)[users])
        assert (np.diff(batch.rows) >= 0).all()

    def test_sparse_product(self):
        vectors, users, batch = self.batch(1)
        kernel = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
        product = jax.jit(sparse_product, static_argnums=1)(batch, 7, kernel)
        np.testing.assert_allclose(product, dense_of(vectors)[users] @ kernel, rtol=1e-4, atol=1e-6)

    def test_token_budget(self):
        vectors, users, batch = self.batch()
        budget = token_budget(vectors, np.stack([users, users[::-1]]))
        assert budget == len(batch.slots) == 512
        assert token_budget(vectors, np.tile(users, 60)) % 512 == 0
        assert token_budget(vectors, np.tile(users, 60)) >= vectors.lengths[users].sum() * 60
        empty = np.flatnonzero(vectors.lengths == 0)[:1]
        assert token_budget(vectors, empty) == 512
        assert not gather_batch(vectors, empty, 512).weights.any()

    def test_too_few_tokens(self):
        vectors, users, _ = self.batch()
        with pytest.raises(ValueError, match="broadcast"):
            gather_batch(vectors, users, 2)
