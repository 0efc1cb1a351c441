"""The importance sampler of timesteps: the recorded one exactly, and a plain loop as its twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.diffusion.timesteps import (
    HISTORY,
    LossHistory,
    empty_history,
    probabilities,
    record,
    sample_timesteps,
)

jit_record = jax.jit(record)
jit_probabilities = jax.jit(probabilities)
jit_sample = jax.jit(sample_timesteps, static_argnums=2)


def int32(values) -> jax.Array:
    return jnp.asarray(values, jnp.int32)


def full_history(losses) -> LossHistory:
    losses = jnp.asarray(losses)
    return LossHistory(losses, jnp.full(losses.shape[0], HISTORY, jnp.int32))


class TestGoldens:
    """In float64, as the reference keeps its history."""

    @pytest.mark.parametrize("target", ["x0", "eps"])
    def test_importance(self, goldens, target):
        golden = goldens("dnn_tiny")
        t = golden[f"{target}/tl/ts"]
        with jax.enable_x64(True):
            history = full_history(golden[f"{target}/imp/Lt_history_before"])
            p = np.asarray(jit_probabilities(history))
            np.testing.assert_allclose(p, golden[f"{target}/imp/pt_all"], rtol=1e-14)
            scaled = p[t] * len(p)
            np.testing.assert_allclose(scaled, golden[f"{target}/imp/pt"], rtol=1e-14)
            losses = golden[f"{target}/tl/loss"]
            np.testing.assert_allclose(losses / scaled, golden[f"{target}/imp/loss"], rtol=1e-14)
            after = jit_record(history, int32(t), jnp.asarray(losses))
            assert after.losses.dtype == jnp.float64
            np.testing.assert_array_equal(after.losses, golden[f"{target}/imp/Lt_history_after"])
            np.testing.assert_array_equal(after.count, np.full(10, HISTORY))

    @pytest.mark.parametrize("target", ["x0", "eps"])
    def test_from_the_start(self, goldens, target):
        golden = goldens("dnn_tiny")
        with jax.enable_x64(True):
            history = jit_record(
                empty_history(10, jnp.float64),
                int32(golden[f"{target}/tl/ts"]),
                jnp.asarray(golden[f"{target}/tl/loss"]),
            )
            np.testing.assert_array_equal(history.losses, golden[f"{target}/tl/Lt_history"])
            np.testing.assert_array_equal(history.count, golden[f"{target}/tl/Lt_count"])

    def test_overflow(self, goldens):
        """Fourteen losses of one timestep in one batch: the last ten stay, in order."""
        golden = goldens("dnn_tiny")
        with jax.enable_x64(True):
            history = jit_record(
                empty_history(10, jnp.float64),
                jnp.full(14, 3, jnp.int32),
                jnp.asarray(golden["x0/ovf/loss"]),
            )
            np.testing.assert_array_equal(history.losses, golden["x0/ovf/Lt_history"])
            np.testing.assert_array_equal(history.count, golden["x0/ovf/Lt_count"])


class TestRecord:
    @pytest.mark.parametrize("batch", [1, 40])
    def test_like_a_plain_loop(self, batch):
        steps, rng = 4, np.random.default_rng(batch)
        history = empty_history(steps)
        kept: list[list[float]] = [[] for _ in range(steps)]
        for _ in range(12):
            t = rng.choice(steps, batch, p=rng.dirichlet(np.full(steps, 0.3)))
            losses = rng.random(batch).astype(np.float32)
            history = jit_record(history, int32(t), jnp.asarray(losses))
            for step, loss in zip(t, losses, strict=True):
                kept[step] = [*kept[step], loss][-HISTORY:]
            expected = [row + [0] * (HISTORY - len(row)) for row in kept]
            np.testing.assert_array_equal(history.losses, np.array(expected, np.float32))
            np.testing.assert_array_equal(history.count, [len(row) for row in kept])
            assert history.count.dtype == jnp.int32

    def test_memory_grows_with_the_batch_and_not_with_its_square(self):
        def memory(batch: int) -> int:
            t, losses = jnp.zeros(batch, jnp.int32), jnp.zeros(batch)
            compiled = jit_record.lower(empty_history(10), t, losses).compile()
            return compiled.memory_analysis().temp_size_in_bytes

        assert memory(8_000) < 12 * memory(1_000)

    def test_no_gradient_flows_into_the_history(self):
        def total(losses):
            return jnp.sum(record(empty_history(3), int32([0, 1, 1]), losses).losses)

        np.testing.assert_array_equal(jax.jit(jax.grad(total))(jnp.ones(3)), np.zeros(3))


class TestProbabilities:
    def test_uniform_until_every_timestep_is_warm(self):
        losses = np.random.default_rng(0).random((5, HISTORY)).astype(np.float32)
        cold = LossHistory(jnp.asarray(losses), int32([10, 10, 9, 10, 10]))
        np.testing.assert_allclose(jit_probabilities(cold), np.full(5, 0.2), rtol=1e-6)
        warm = np.asarray(jit_probabilities(full_history(losses)))
        root = np.sqrt(np.square(losses, dtype=np.float64).mean(axis=1))
        np.testing.assert_allclose(warm, 0.999 * root / root.sum() + 0.001 / 5, rtol=1e-5)

    def test_no_loss_at_all(self):
        p = jit_probabilities(full_history(np.zeros((4, HISTORY), np.float32)))
        np.testing.assert_array_equal(p, np.full(4, 0.25, np.float32))


class TestSample:
    def test_frequencies(self):
        """Chi-square with 5 degrees of freedom: 30 is exceeded once in 70,000 seeds."""
        scale = np.array([1, 0, 3, 0.5, 8, 2], np.float32)
        history = full_history(np.repeat(scale[:, None], HISTORY, axis=1))
        t, scaled = jit_sample(jax.random.key(0), history, 200_000)
        p = np.asarray(jit_probabilities(history), np.float64)
        counts = np.bincount(t, minlength=6)
        assert np.sum((counts - 200_000 * p) ** 2 / (200_000 * p)) < 30
        np.testing.assert_allclose(scaled, 6 * p[np.asarray(t)], rtol=1e-6)
        assert t.dtype == jnp.int32

    def test_weighting_is_unbiased(self):
        """The mean of loss / (T p) is the mean of the loss over uniform timesteps."""
        rng = np.random.default_rng(1)
        history = full_history(rng.random((6, HISTORY)).astype(np.float32))
        loss = rng.random(6)
        t, scaled = jit_sample(jax.random.key(1), history, 200_000)
        weighted = loss[np.asarray(t)] / np.asarray(scaled, np.float64)
        assert abs(weighted.mean() - loss.mean()) < 5 * weighted.std() / 200_000**0.5

    def test_one_timestep(self):
        t, scaled = jit_sample(jax.random.key(0), empty_history(1), 5)
        np.testing.assert_array_equal(t, np.zeros(5))
        np.testing.assert_array_equal(scaled, np.ones(5))
