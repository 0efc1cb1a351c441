"""The training loss: its dense form from the parts, its windowed form in distribution."""

import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.diffusion import step
from pdrec_jax.diffusion.inference import DiffusionModel
from pdrec_jax.diffusion.process import denoising_loss, normal_from_bits, q_sample
from pdrec_jax.diffusion.schedule import make_schedule
from pdrec_jax.diffusion.timesteps import HISTORY, LossHistory, record
from pdrec_jax.random_bits import hashed_bits

SLOTS = 10


class Transparent(DiffusionModel):
    """A model whose denoiser returns z, the projected input of its first layer."""

    def denoiser(self, params: Any) -> Any:
        return types.SimpleNamespace(
            item_kernel=params,
            prepare=lambda x: x,
            project=lambda x: jnp.dot(x, params),
            trunk=lambda z, t: z,
            readout=lambda h: h,
        )


def loud_schedule():
    return make_schedule(
        "linear-var", 4, noise_scale=1, noise_min=0.2, noise_max=0.6, fix_first_beta=False
    )


@functools.partial(jax.jit, static_argnums=0)
def dense_z(model, keys, batch, x_0, t):
    def one(key):
        output, _, _ = step._dense_forward(model, jnp.eye(SLOTS), model.coefficients(), x_0, t, key)
        return output

    return jax.vmap(one)(keys)


@functools.partial(jax.jit, static_argnums=0)
def window_z(model, keys, batch, x_0, t):
    def one(key):
        return step._window_forward(model, jnp.eye(SLOTS), model.coefficients(), batch, x_0, t, key)

    return jax.vmap(one)(keys)


DRAWS = 60_000
DENSE = Transparent(None, SLOTS, loud_schedule(), dropout=0.5)
WINDOWED = Transparent(None, SLOTS, loud_schedule(), dropout=0.25, noise_fraction=0.25)


@pytest.fixture
def inputs(sparse):
    """Two rows, one of them with nothing, and their timesteps."""
    x_0 = np.zeros((2, SLOTS), np.float32)
    x_0[0, [1, 4, 9]] = 0.5, 1.0, 0.75
    return sparse(x_0), jnp.asarray(x_0), jnp.asarray([3, 1], jnp.int32)


@pytest.mark.parametrize(("form", "model"), [(dense_z, DENSE), (window_z, WINDOWED)])
def test_mean_and_covariance_of_the_projected_input(inputs, form, model):
    """Every form: mean s x, variance s^2 x^2 d / (1 - d) + sigma^2 / (1 - d), no correlation.

    With the identity for a kernel, z is the corrupted input itself; for any other kernel its mean
    and covariance follow from these.
    """
    batch, x_0, t = inputs
    dropout = model.dropout
    keys = jax.random.split(jax.random.key(0), DRAWS)
    z = np.asarray(form(model, keys, batch, x_0, t), np.float64)
    c = model.schedule
    signal = c.signal_scale[t][:, None] * np.asarray(x_0)
    noise = c.noise_scale[t][:, None] ** 2 + np.zeros_like(signal)
    variance = signal**2 * dropout / (1 - dropout) + noise / (1 - dropout)
    np.testing.assert_array_less(np.abs(z.mean(axis=0) - signal), 5 * (variance / DRAWS) ** 0.5)
    centred = z - signal
    for row in range(2):
        products = centred[:, row, :, None] * centred[:, row, None, :]
        error = products.std(axis=0) / DRAWS**0.5
        expected = np.diag(variance[row])
        np.testing.assert_array_less(np.abs(products.mean(axis=0) - expected), 5 * error + 1e-9)


def test_windows_are_equally_likely_and_share_no_slot(inputs):
    batch, _, t = inputs
    empty = type(batch)(batch.slots, batch.rows, np.zeros_like(batch.weights))
    keys = jax.random.split(jax.random.key(1), DRAWS)
    hit = np.asarray(window_z(WINDOWED, keys, empty, jnp.zeros((2, SLOTS)), t)) != 0
    groups = np.arange(SLOTS) // 3  # four windows, the last one cut
    expected = np.full((2, SLOTS), 0.25 * 0.75)  # chosen, and kept by the dropout
    np.testing.assert_allclose(hit.mean(axis=0), expected, atol=0.01)
    # A draw marks slots of one window, the same one in each row.
    for marks in np.unique(hit, axis=0):
        assert len(set(groups[np.nonzero(marks)[1]])) <= 1


class TestTrainingLoss:
    def warm(self) -> LossHistory:
        losses = np.random.default_rng(0).uniform(0.1, 1, (10, HISTORY)).astype(np.float32)
        return LossHistory(jnp.asarray(losses), jnp.full(10, HISTORY, jnp.int32))

    def test_dense_form_from_its_parts(self, random_model, random_vectors, sparse):
        model, params = random_model(0, target="epsilon", dropout=0.25)
        x_0 = random_vectors(0, 6, 37)
        key, history = jax.random.key(3), self.warm()

        @jax.jit
        def by_parts():
            key_t, key_noise = jax.random.split(key)
            t, scaled = step.sample_timesteps(key_t, history, 6)
            bits = hashed_bits(key_noise, (6, 37))
            noise = normal_from_bits(bits)
            keep = jnp.where((bits & 511) >= 128, 1 / 0.75, 0.0)
            c = model.coefficients()
            x_t = q_sample(c, jnp.asarray(x_0), t, noise)
            output = model.denoiser(params)(x_t * keep, t)
            losses = denoising_loss(c, "epsilon", output, jnp.asarray(x_0), x_t, noise, t)
            return losses, scaled, record(history, t, losses)

        losses, scaled, expected = by_parts()
        loss, (updated, mean) = jax.jit(step.training_loss, static_argnums=(1, 4))(
            params, model, history, sparse(x_0), 6, key
        )
        np.testing.assert_allclose(loss, np.mean(losses / scaled), rtol=1e-5)
        np.testing.assert_allclose(mean, np.mean(losses), rtol=1e-5)
        np.testing.assert_allclose(updated.losses, expected.losses, rtol=1e-5)
        np.testing.assert_array_equal(updated.count, expected.count)

    def test_forms_agree_where_nothing_is_random(self, random_model, random_vectors, sparse):
        """Without noise and dropout the window does not matter: same loss, gradient, history."""
        batch, key = sparse(random_vectors(2, 6, 37)), jax.random.key(0)
        schedule = make_schedule("linear", 10, noise_scale=0, noise_min=0, noise_max=0)

        def run(fraction: float):
            model, params = random_model(0, schedule=schedule, dropout=0.0, noise_fraction=fraction)
            loss = jax.value_and_grad(step.training_loss, has_aux=True)
            return jax.jit(loss, static_argnums=(1, 4))(params, model, self.warm(), batch, 6, key)

        dense, windowed = run(1.0), run(0.25)
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(dense[1])) > 0.01
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), windowed, dense
        )

    @pytest.mark.parametrize(("rate", "kept"), [(0.0, 1.0), (0.5, 0.5), (0.9, 0.1)])
    def test_dropout_keeps_the_mean(self, rate, kept):
        bits = hashed_bits(jax.random.key(0), (100_000,))
        factors = np.asarray(step._keep(bits, rate))
        assert set(np.unique(factors)) <= {np.float32(0), np.float32(1 / (1 - rate))}
        assert (factors > 0).mean() == pytest.approx(kept, abs=0.006)
