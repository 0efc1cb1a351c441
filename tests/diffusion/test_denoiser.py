"""The denoiser: the recorded one, its parts, its shapes and its initial values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.diffusion.denoiser import (
    BIAS_STDDEV,
    bind,
    make_denoiser,
    structure,
    timestep_embedding,
)


@functools.partial(jax.jit, static_argnums=0)
def forward(graph, params, x, t):
    return bind(graph, params)(x, t)


def steps(*values: int) -> jax.Array:
    return jnp.asarray(values, jnp.int32)


class TestGoldens:
    def test_output(self, tiny):
        tiny = tiny("x0")
        x, t = tiny.golden["x_t"], steps(*tiny.golden["t"])
        output = forward(tiny.model.graph, tiny.params, x, t)
        np.testing.assert_allclose(output, tiny.golden["out"], rtol=1e-5, atol=1e-6)

    def test_timestep_embedding(self, goldens):
        expected = goldens("dnn_tiny")["temb_0to9"]
        np.testing.assert_allclose(timestep_embedding(steps(*range(10)), 4), expected, atol=1e-6)


class TestTimestepEmbedding:
    @pytest.mark.parametrize("size", [1, 2, 5, 10, 13])
    def test_formula(self, size):
        t, half = np.array([0, 3, 99]), size // 2
        angles = t[:, None] * 10_000.0 ** (-np.arange(half) / max(half, 1))
        expected = np.concatenate([np.cos(angles), np.sin(angles), np.zeros((3, size % 2))], axis=1)
        embedding = timestep_embedding(steps(*t), size)
        assert embedding.shape == (3, size)
        assert embedding.dtype == jnp.float32
        np.testing.assert_allclose(embedding, expected, atol=2e-5)


def twin(params, x, t, embedding_size, depth):
    """The reference's order of operations: concatenate, then plain layers."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    embedding = np.asarray(timestep_embedding(t, embedding_size), np.float64)
    embedding = embedding @ p["timestep"]["kernel"] + p["timestep"]["bias"]
    kernel = np.concatenate([p["item_kernel"], p["time_kernel"]])
    h = np.tanh(np.concatenate([x, embedding], axis=1) @ kernel + p["first_bias"])
    for layer in range(depth):
        h = np.tanh(h @ p["middle"][layer]["kernel"] + p["middle"][layer]["bias"])
    return h @ p["output"]["kernel"].T + p["output"]["bias"]


@pytest.mark.parametrize(
    ("hidden", "embedding", "middle"),
    [
        ((6,), 4, []),
        ((5, 8), 3, [(8, 5), (5, 8)]),
        ((3, 4, 7), 1, [(7, 4), (4, 3), (3, 4), (4, 7)]),
    ],
)
class TestShapes:
    def test_forward(self, random_model, random_vectors, hidden, embedding, middle):
        model, params = random_model(3, 19, hidden, embedding)
        assert params["item_kernel"].shape == (19, hidden[-1])
        assert params["output"]["kernel"].shape == (19, hidden[-1])
        shapes = [params["middle"][n]["kernel"].shape for n in range(len(middle))]
        assert shapes == middle
        x, t = random_vectors(0, 4, 19), steps(0, 1, 5, 9)
        output = forward(model.graph, params, x, t)
        expected = twin(params, x, t, embedding, len(middle))
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


class TestMakeDenoiser:
    def test_xavier_normal(self):
        graph, params = make_denoiser(800, (100,), 10, normalise=False, seed=1)
        assert structure(lambda: make_denoiser(800, (100,), 10, normalise=False, seed=2)) == graph
        stddev = {
            "item_kernel": (2 / (810 + 100)) ** 0.5,  # fans of the whole first layer
            "time_kernel": (2 / (810 + 100)) ** 0.5,
            "first_bias": BIAS_STDDEV,
        }
        for name, expected in stddev.items():
            values = np.asarray(params[name])
            assert values.dtype == np.float32
            tolerance = 5 / (2 * values.size) ** 0.5
            assert values.std() == pytest.approx(expected, rel=tolerance)
            assert abs(values.mean()) < 5 * expected / values.size**0.5
        kernel = np.asarray(params["output"]["kernel"])
        assert kernel.std() == pytest.approx((2 / 900) ** 0.5, rel=0.02)
        same = make_denoiser(800, (100,), 10, normalise=False, seed=1)[1]
        jax.tree.map(np.testing.assert_array_equal, params, same)
        other = make_denoiser(800, (100,), 10, normalise=False, seed=2)[1]
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).all()), params, other)))


class TestNormalise:
    def test_unit_length_and_empty_rows(self, random_model, random_vectors):
        x = jnp.asarray(random_vectors(0, 5, 37))
        model, params = random_model(0, normalise=True)
        prepared = np.asarray(model.denoiser(params).prepare(x))
        assert not prepared[0].any()
        np.testing.assert_allclose(np.linalg.norm(prepared, axis=1), [0, 1, 1, 1, 1], rtol=1e-6)
        plain, _ = random_model(0)
        np.testing.assert_array_equal(plain.denoiser(params).prepare(x), x)

    def test_gradient_is_finite(self, random_model):
        model, params = random_model(0, normalise=True)
        denoiser = model.denoiser(params)
        x = jnp.zeros((1, 37)).at[0, 3].set(1e-20)
        differentiate = jax.jit(jax.grad(lambda v: jnp.sum(denoiser(v, steps(0)))))
        for vector in (x, jnp.zeros((1, 37))):
            assert np.isfinite(differentiate(vector)).all()
