"""The layers, each against its equation in NumPy and float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrec_jax.encoders.layers import (
    Attention,
    FeedForward,
    LayerNorm,
    dropout,
    normalise,
    project,
    visible_cells,
    xavier_normal,
)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


def double(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def parameters(module: nnx.Module) -> dict:
    return double(nnx.to_pure_dict(nnx.state(module)))


class TestDropout:
    def test_identity(self):
        x = normal(3, 5)
        assert dropout(x, 0.5, None) is x
        assert dropout(x, 0.0, jax.random.key(0)) is x

    @pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.9])
    def test_rate_and_scale(self, rate):
        x = jnp.full((500, 1000), 3.0)
        y = np.asarray(dropout(x, rate, jax.random.key(1)))
        kept = y != 0
        np.testing.assert_allclose(y[kept], 3.0 / (1 - rate), rtol=1e-6)
        # Five standard deviations, of the whole and of every row and column.
        for axis, n in ((None, y.size), (0, 500), (1, 1000)):
            share = np.atleast_1d(1 - kept.mean(axis))
            spread = np.sqrt(rate * (1 - rate) / n)
            assert (np.abs(share - rate) < 5 * spread).all()

    def test_cells_are_independent(self):
        x = jnp.ones((400, 1000))
        kept = [np.asarray(dropout(x, 0.5, jax.random.key(s))) > 0 for s in (1, 1, 2)]
        np.testing.assert_array_equal(kept[0], kept[1])
        signs = [np.where(mask, 1.0, -1.0) for mask in kept]
        one, other = signs[0], signs[2]
        along = [(one[:, step:], one[:, :-step]) for step in (1, 64)]
        pairs = [(one, other), (one[1:], one[:-1]), *along]
        for left, right in pairs:
            assert abs((left * right).mean()) < 5 / np.sqrt(left.size)

    def test_gradient_has_the_mask(self):
        x, key = jnp.ones((4, 50)), jax.random.key(3)
        gradient = jax.grad(lambda x: jnp.sum(dropout(x, 0.25, key)))(x)
        np.testing.assert_array_equal(gradient, dropout(x, 0.25, key))


class TestNormalise:
    def test_length_one(self):
        x = normal(7, 3, 8, scale=5.0)
        wanted = double(x) / np.linalg.norm(double(x), axis=-1, keepdims=True)
        np.testing.assert_allclose(normalise(x), wanted, rtol=1e-6, atol=1e-7)

    def test_zero_vector(self):
        x = jnp.zeros((2, 4))
        value, gradient = jax.value_and_grad(lambda x: jnp.sum(normalise(x) * 0.5))(x)
        assert value == 0
        assert np.isfinite(gradient).all()


def test_layer_norm():
    module = LayerNorm(6)
    module.scale[...], module.bias[...] = normal(6, seed=1), normal(6, seed=2)
    x = normal(2, 5, 6, scale=3.0)
    centred = double(x) - double(x).mean(-1, keepdims=True)
    wanted = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-8)
    wanted = wanted * double(module.scale[...]) + double(module.bias[...])
    np.testing.assert_allclose(module(x), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        module(jnp.zeros((1, 1, 6)))[0, 0], module.bias[...], rtol=0, atol=1e-6
    )


def test_feed_forward():
    module = FeedForward(6, 0.5, rngs=nnx.Rngs(params=0))
    x, w = normal(2, 5, 6), parameters(module)
    hidden = np.maximum(double(x) @ w["inner"] + w["inner_bias"], 0)
    wanted = hidden @ w["outer"] + w["outer_bias"] + double(x)
    np.testing.assert_allclose(module(x, None), wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(module(x, jax.random.key(0)) - wanted).max() > 0.01


def test_feed_forward_drops_twice():
    """After each layer, and apart: what is left of ones has passed both."""
    module = FeedForward(32, 0.5, rngs=nnx.Rngs(params=0))
    for name in ("inner", "outer"):
        getattr(module, name)[...] = jnp.eye(32)
        getattr(module, f"{name}_bias")[...] = jnp.zeros(32)
    out = np.asarray(module(jnp.ones((4, 16, 32)), jax.random.key(0)))
    assert set(out.ravel()) == {1.0, 5.0}
    assert (out > 1).mean() == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("fans", [(64, 192), (64, 64), (1001, 64)])
def test_xavier_normal(fans):
    values = np.asarray(xavier_normal(jax.random.key(0), (600, 64), fans))
    variance = 2 / sum(fans)
    assert abs(values.mean()) < 5 * np.sqrt(variance / values.size)
    np.testing.assert_allclose(values.var(), variance, rtol=5 * np.sqrt(2 / values.size))


class TestVisibleCells:
    @given(
        segments=st.lists(
            st.lists(st.integers(0, 2), min_size=5, max_size=5), min_size=1, max_size=3
        ),
        seed=st.integers(0, 99),
    )
    @settings(deadline=None, max_examples=20)
    def test_against_a_loop(self, segments, seed):
        table = np.sort(np.array(segments, np.int32), axis=1)
        occupied = np.random.default_rng(seed).random(table.shape) < 0.7
        found = np.asarray(visible_cells(jnp.asarray(table), jnp.asarray(occupied)))
        for row, cell, other in itertools.product(range(len(table)), range(5), range(5)):
            same = table[row, cell] == table[row, other]
            assert found[row, cell, other] == (other <= cell and same and occupied[row, other])


def attend(w, heads, queries, x, visible, pads):
    """The public code's attention of one row, its padded keys and values spelled out."""
    size = queries.shape[1] // heads
    mixed = np.zeros_like(queries)
    for cell, head in itertools.product(range(len(x)), range(heads)):
        part = slice(head * size, (head + 1) * size)
        # Any key bias would do: it shifts all of a softmax alike.
        q = (queries[cell] @ w["query"] + w["query_bias"])[part]
        shown = np.concatenate([x[visible[cell]], np.zeros((int(pads[cell]), x.shape[1]))])
        if len(shown) == 0:
            mixed[cell, part] = w["value_bias"][part]
            continue
        logits = (shown @ w["key"] + 0.7)[:, part] @ q / np.sqrt(size)
        share = np.exp(logits - logits.max())
        mixed[cell, part] = share / share.sum() @ (shown @ w["value"] + w["value_bias"])[:, part]
    return mixed @ w["output"] + w["output_bias"]


class TestAttention:
    @pytest.mark.parametrize("heads", [1, 2])
    def test_against_the_equations(self, heads):
        module = Attention(8, heads, 0.5, rngs=nnx.Rngs(params=1))
        for name in ("query_bias", "value_bias", "output_bias"):
            getattr(module, name)[...] = normal(8, seed=len(name))
        rng = np.random.default_rng(heads)
        queries, x = normal(4, 6, 8, seed=3), normal(4, 6, 8, seed=4)
        visible = np.tril(np.ones((6, 6), bool))[None] & (rng.random((4, 6, 6)) < 0.7)
        visible[:, 2] = False
        pads = rng.integers(0, 5, (4, 6)).astype(np.float32)
        pads[0] = 0
        found = module(queries, x, jnp.asarray(visible), jnp.asarray(pads), None)
        w = parameters(module)
        for row in range(4):
            wanted = attend(w, heads, double(queries[row]), double(x[row]), visible[row], pads[row])
            np.testing.assert_allclose(found[row], wanted, rtol=1e-5, atol=1e-5)

    def test_gradient_is_finite_where_a_cell_sees_nothing(self):
        module = Attention(4, 2, 0.0, rngs=nnx.Rngs(params=1))
        nothing, pads = jnp.zeros((1, 3, 3), bool), jnp.zeros((1, 3))

        def total(x):
            return jnp.sum(module(x, x, nothing, pads, None))

        assert np.isfinite(jax.jit(jax.grad(total))(normal(1, 3, 4))).all()

    @pytest.mark.parametrize("logit", [-500.0, -50.0, 50.0, 500.0])
    @pytest.mark.parametrize("pads", [0.0, 2.0])
    @pytest.mark.parametrize("keys", [1, 2])
    def test_keys_of_any_logit(self, logit, pads, keys):
        module = Attention(4, 1, 0.0, rngs=nnx.Rngs(params=1))
        module.query[...], module.key[...] = logit / 2 * jnp.eye(4), jnp.eye(4)
        module.value[...], module.output[...] = jnp.eye(4), jnp.eye(4)
        x = jnp.ones((1, keys, 4))
        found = module(x, x, jnp.ones((1, keys, keys), bool), jnp.full((1, keys), pads), None)
        share = 1.0 if pads == 0 else keys / (keys + pads * np.exp(-logit))
        np.testing.assert_allclose(found, np.full((1, keys, 4), share), rtol=1e-5, atol=1e-30)

    def test_dropout_of_the_weights(self):
        module = Attention(8, 2, 0.5, rngs=nnx.Rngs(params=1))
        x = normal(1, 6, 8)
        visible = jnp.tril(jnp.ones((1, 6, 6), bool))
        keys = jax.vmap(jax.random.key)(jnp.arange(300))
        runs = jax.jit(jax.vmap(lambda key: module(x, x, visible, jnp.zeros((1, 6)), key)))(keys)
        exact = np.asarray(module(x, x, visible, jnp.zeros((1, 6)), None))
        spread = np.std(runs, axis=0)
        assert (spread > 0.01).all()
        # Unbiased: the mean of 300 lies within five standard errors.
        assert (np.abs(np.mean(runs, axis=0) - exact) < 5 * spread / np.sqrt(300)).all()


@pytest.mark.parametrize("shape", [(6, 3), (2, 5, 3)])
def test_project_and_its_gradient(shape):
    rng = np.random.default_rng(0)
    x, kernel = (
        rng.normal(size=shape).astype(np.float32),
        rng.normal(size=(3, 4)).astype(np.float32),
    )
    results = [
        jax.value_and_grad(lambda *given, f=f: jnp.sum(jnp.sin(f(*given))), argnums=(0, 1))(
            x, kernel
        )
        for f in (project, jnp.dot)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)
