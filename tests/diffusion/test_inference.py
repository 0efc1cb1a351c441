"""Scores of batches: the factored loop equals the dense one for every shape of model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.diffusion import inference
from pdrec_jax.diffusion.inference import couple, score_all, score_all_dense, score_items
from pdrec_jax.diffusion.schedule import make_schedule

SLOTS, USERS = 29, np.array([4, 0, 9, 7], np.int32)


@functools.partial(jax.jit, static_argnums=0)
def every_score(model, params, coupled, batch, key, users, items):
    """Of all slots factored and dense, of some slots factored."""
    arguments = model, params, coupled, batch, key, users
    return (
        score_all(*arguments),
        score_all_dense(model, params, batch, key, users),
        None if items is None else score_items(*arguments, items),
    )


def relative(actual, expected) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def random_case(seed: int) -> dict:
    """A shape of model and a schedule; twelve seeds cover the ranges between them."""
    rng = np.random.default_rng(seed)
    steps = seed + 1  # 1 to 12
    depth = 1 + seed % 3
    name = ("linear-var", "linear", "linear-var", "cosine", "binomial")[seed % 5]
    schedule = make_schedule(
        name, steps, noise_scale=rng.choice([0.01, 0.1]), noise_min=0.0005, noise_max=0.02
    )
    return {
        "target": ("x0", "epsilon")[seed // 2 % 2],
        "hidden": tuple(rng.integers(3, 12, depth).tolist()),
        "embedding": int(rng.integers(1, 8)),
        "schedule": schedule,
        "sampling_steps": int(rng.integers(1, steps + 1)) if seed % 2 else 0,
    }


class TestFactoredEqualsDense:
    @pytest.mark.parametrize("seed", range(12))
    def test_random_models(self, monkeypatch, random_model, random_vectors, sparse, seed):
        noise = jnp.asarray(np.random.default_rng(seed + 100).normal(size=(4, SLOTS)), jnp.float32)
        monkeypatch.setattr(inference, "_start_noise", lambda model, key, users: noise)
        model, params = random_model(seed, SLOTS, **random_case(seed))
        items = np.random.default_rng(seed).integers(0, SLOTS, (4, 6)).astype(np.int32)
        items = items if seed > 7 else None  # four cases of all kinds, to spare the compiler
        batch = sparse(random_vectors(seed, 4, SLOTS))
        coupled = couple(model, params)
        factored, dense, some = every_score(
            model, params, coupled, batch, jax.random.key(seed), USERS, items
        )
        assert factored.shape == dense.shape == (4, SLOTS)
        assert factored.dtype == jnp.float32
        assert relative(factored, dense) < 1e-5
        if items is not None:
            assert relative(some, np.take_along_axis(np.asarray(dense), items, axis=1)) < 1e-5

    def test_the_cases_cover_every_kind(self):
        cases = [random_case(seed) for seed in range(12)]
        assert {len(case["hidden"]) for case in cases} == {1, 2, 3}
        both = {(case["target"], case["sampling_steps"] > 0) for case in cases}
        assert len(both) == 4
        assert {case["embedding"] % 2 for case in cases} == {0, 1}
        assert {case["schedule"].steps for case in cases} == set(range(1, 13))


class TestGoldens:
    @pytest.mark.parametrize(("target", "steps"), [("x0", 0), ("epsilon", 4)])
    def test_sparse_start(self, monkeypatch, tiny, sparse, target, steps):
        """From sparse vectors to scores, with the recorded forward noise in place of a draw."""
        tiny = tiny(target, sampling_steps=steps)
        noise = jnp.asarray(tiny.golden["q_noise"])
        monkeypatch.setattr(inference, "_start_noise", lambda model, key, users: noise)
        users = np.arange(6, dtype=np.int32)
        items = np.tile(np.arange(22, -1, -1, dtype=np.int32), (6, 1))
        expected = tiny[f"p_sample_s{steps}"]
        factored, dense, some = every_score(
            tiny.model,
            tiny.params,
            couple(tiny.model, tiny.params),
            sparse(tiny.golden["x_start"]),
            jax.random.key(0),
            users,
            items,
        )
        close = {"rtol": 1e-5, "atol": 1e-5}
        np.testing.assert_allclose(factored, expected, **close)
        np.testing.assert_allclose(dense, expected, **close)
        np.testing.assert_allclose(some, expected[:, ::-1], **close)


class TestDenseOnly:
    """What breaks the affinity: input normalisation and sampling noise."""

    def test_falls_back(self, random_model, random_vectors, sparse):
        for options in ({"normalise": True}, {"sampling_noise": True}):
            model, params = random_model(0, SLOTS, target="x0", **options)
            assert not model.affine
            assert couple(model, params) is None
        items = np.array([[3, 5], [1, 1], [0, 28], [7, 2]], np.int32)
        scores, dense, some = every_score(
            model,
            params,
            None,
            sparse(random_vectors(0, 4, SLOTS)),
            jax.random.key(0),
            USERS,
            items,
        )
        np.testing.assert_array_equal(scores, dense)
        np.testing.assert_array_equal(some, np.take_along_axis(np.asarray(dense), items, axis=1))

    @pytest.mark.parametrize("options", [{}, {"sampling_steps": 2}, {"normalise": True}])
    def test_of_the_first_slots(self, random_model, random_vectors, sparse, options):
        model, params = random_model(2, SLOTS, **options)
        x, coupled = random_vectors(2, 4, SLOTS), couple(model, params)
        score = jax.jit(score_all, static_argnums=(0, 6))
        given = model, params, coupled, sparse(x), jax.random.key(0), USERS
        np.testing.assert_allclose(score(*given, 11), score(*given)[:, :11], rtol=1e-6, atol=1e-6)


class TestDraws:
    @pytest.mark.parametrize("options", [{"sampling_steps": 5}, {"sampling_noise": True}])
    def test_belong_to_the_user(self, random_model, random_vectors, sparse, options):
        """The same user gets the same draw anywhere in any batch, another key another one."""
        schedule = make_schedule("cosine", 10, noise_scale=1, noise_min=0, noise_max=1)
        model, params = random_model(1, SLOTS, target="epsilon", schedule=schedule, **options)
        x = random_vectors(1, 4, SLOTS)
        coupled = couple(model, params)
        score = jax.jit(score_all, static_argnums=0)

        def run(order, seed=0):
            key = jax.random.key(seed)
            return np.asarray(score(model, params, coupled, sparse(x[order]), key, USERS[order]))

        scores = run([0, 1, 2, 3])
        np.testing.assert_allclose(run([3, 2, 1, 0]), scores[::-1], rtol=1e-5, atol=1e-5)
        assert np.abs(run([0, 1, 2, 3], seed=1) - scores).max() > 1e-3
        np.testing.assert_array_equal(run([0, 1, 2, 3]), scores)
        # One vector for all: what differs between users is the draw.
        key, equal = jax.random.key(0), sparse(np.tile(x[1], (4, 1)))
        scores = np.asarray(score(model, params, coupled, equal, key, USERS))
        assert np.abs(scores[1:] - scores[:1]).max(axis=1).min() > 1e-3

    def test_each_step_draws_its_own(self, monkeypatch, random_model, random_vectors, sparse):
        def between_two_steps(denoise, a, c, x, *, noise, log_variance):
            return noise(jnp.int32(3)) - noise(jnp.int32(2))

        monkeypatch.setattr(inference.reverse, "reverse_dense", between_two_steps)
        model, params = random_model(1, SLOTS, sampling_noise=True)
        batch = sparse(random_vectors(1, 4, SLOTS))
        found = score_all(model, params, None, batch, jax.random.key(0), USERS)
        # The difference of two independent normals has a variance of 2.
        assert np.std(found) == pytest.approx(2**0.5, rel=0.3)
