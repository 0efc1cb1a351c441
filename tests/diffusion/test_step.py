"""The training loss: its dense form from the parts, its windowed form against the dense one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.diffusion import step, windows
from pdrec_jax.diffusion.process import denoising_loss, normal_from_bits, q_sample
from pdrec_jax.diffusion.schedule import make_schedule
from pdrec_jax.diffusion.timesteps import HISTORY, LossHistory, record
from pdrec_jax.diffusion.windows import keep_factors
from pdrec_jax.random_bits import hashed_bits


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

    def test_forms_agree_where_nothing_is_random(self, random_model, random_vectors, sparse, split):
        """Without noise and dropout the noise's window does not matter: same loss and gradient."""
        x_0, key = random_vectors(2, 6, 37), jax.random.key(0)
        schedule = make_schedule("linear", 10, noise_scale=0, noise_min=0, noise_max=0)
        even = LossHistory(jnp.ones((10, HISTORY)), jnp.full(10, HISTORY, jnp.int32))
        head = windows.choose_head((x_0 > 0).sum(axis=0), 4)

        def run(fraction: float):
            model, params = random_model(
                0, schedule=schedule, dropout=0.0, noise_fraction=fraction, reweight=False
            )
            t = jnp.asarray([0, 3, 3, 9, 5, 1], jnp.int32)
            drawn = (t, jnp.ones(6))

            def loss(params):
                with pytest.MonkeyPatch.context() as patch:
                    for module in (step, windows):
                        patch.setattr(module, "sample_timesteps", lambda *_: drawn)
                    if fraction < 1:
                        batch = split(x_0, head)
                        return step.windowed_training_loss(params, model, head, even, batch, 6, key)
                    return step.training_loss(params, model, even, sparse(x_0), 6, key)

            return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

        dense, windowed = run(1.0), run(0.25)
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(dense[1])) > 0.001
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), windowed, dense
        )

    @pytest.mark.parametrize("rate", [0.0, 0.5, 0.9, 0.99, 0.9999])
    def test_dropout_keeps_the_mean(self, rate):
        bits = hashed_bits(jax.random.key(0), (100_000,))
        factors = np.asarray(keep_factors(bits, rate))
        assert (factors > 0).mean() == pytest.approx(1 - rate, abs=0.006)
        # Over all levels of the bits the mean is 1, whatever the rate.
        assert np.mean(keep_factors(jnp.arange(512, dtype=jnp.uint32), rate)) == pytest.approx(1)
