"""The lean form of the dense step against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.diffusion.dense_step import dense_losses, mean_square_error
from pdrec_jax.diffusion.process import denoising_loss, normal_from_bits, q_sample
from pdrec_jax.random_bits import hashed_bits, hashed_bits_of


class TestMeanSquareError:
    @pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
    def test_of_the_plain_form(self, random_vectors, sparse, scale):
        """From outputs that are small beside the target to some that are large beside it."""
        rng = np.random.default_rng(0)
        x = random_vectors(0, 6, 37)
        h, kernel, bias = (
            jnp.asarray(scale * rng.normal(size=shape), jnp.float32)
            for shape in ((6, 8), (37, 8), (37,))
        )
        slope = jnp.asarray(rng.normal(size=6), jnp.float32)

        def lean(h, kernel, bias):
            losses = mean_square_error(h, kernel, bias, sparse(x))
            return jnp.dot(slope, losses), losses

        def plain(h, kernel, bias):
            losses = jnp.mean(jnp.square(h @ kernel.T + bias[None, :] - x), axis=1)
            return jnp.dot(slope, losses), losses

        def run(form):
            return jax.jit(jax.value_and_grad(form, (0, 1, 2), has_aux=True))(h, kernel, bias)

        (_, losses), slopes = run(lean)
        (_, expected), plain_slopes = run(plain)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        for ours, theirs in zip(slopes, plain_slopes, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max())

    def test_a_perfect_output(self, random_vectors, sparse):
        """What cancels leaves an error far below any loss of a training."""
        x = random_vectors(0, 6, 37)
        losses = mean_square_error(jnp.eye(6), jnp.asarray(x.T), jnp.zeros(37), sparse(x))
        np.testing.assert_allclose(losses, np.zeros(6), atol=1e-6)


class TestDenseLosses:
    @pytest.mark.parametrize("dropout", [0.0, 0.5])
    def test_of_the_plain_form(self, random_model, random_vectors, sparse, dropout):
        """The same draws through the denoiser as a whole: losses and gradients."""
        model, params = random_model(1, dropout=dropout)
        x, key = random_vectors(1, 6, 37), jax.random.key(5)
        t = jnp.asarray([0, 3, 9, 9, 5, 1], jnp.int32)

        def lean(params):
            losses = dense_losses(params, model, sparse(x), t, 6, key)
            return losses.sum(), losses

        def plain(params):
            c, bits = model.coefficients(), hashed_bits(key, x.shape)
            noise = normal_from_bits(bits)
            keep = jnp.where((bits & 511) >= round(512 * dropout), 1 / (1 - dropout), 0.0)
            x_t = q_sample(c, jnp.asarray(x), t, noise)
            output = model.denoiser(params)(x_t * keep, t)
            losses = denoising_loss(c, "x0", output, jnp.asarray(x), x_t, noise, t)
            return losses.sum(), losses

        (_, losses), slopes = jax.jit(jax.value_and_grad(lean, has_aux=True))(params)
        (_, expected), plain_slopes = jax.jit(jax.value_and_grad(plain, has_aux=True))(params)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(slopes)) > 0.001
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            slopes,
            plain_slopes,
        )

    def test_words_at_tokens(self):
        key, table = jax.random.key(1), hashed_bits(jax.random.key(1), (7, 50_001))
        rows, columns = jnp.asarray([0, 6, 3, 3]), jnp.asarray([0, 50_000, 17, 49_999])
        words = hashed_bits_of(key, rows, columns, 50_001)
        np.testing.assert_array_equal(words, table[rows, columns])
