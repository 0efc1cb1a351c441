"""Steps on windows of the slots: the noise in distribution, the error in expectation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.diffusion import step
from pdrec_jax.diffusion.inference import DiffusionModel
from pdrec_jax.diffusion.process import denoising_loss, q_sample
from pdrec_jax.diffusion.schedule import make_schedule
from pdrec_jax.diffusion.timesteps import empty_history
from pdrec_jax.diffusion.windows import (
    Window,
    draw_step,
    draw_window,
    error_slots,
    losses_of_rows,
    project_rows,
)

SLOTS, DRAWS = 10, 60_000


def loud_schedule(steps: int = 4):
    return make_schedule(
        "linear-var", steps, noise_scale=1, noise_min=0.2, noise_max=0.6, fix_first_beta=False
    )


@pytest.fixture
def batch(sparse):
    x_0 = np.zeros((2, SLOTS), np.float32)
    x_0[0, [1, 4, 9]] = 0.5, 1.0, 0.75
    return sparse(x_0)


@functools.partial(jax.jit, static_argnums=0)
def projected(model, keys, batch):
    """z for many draws with the identity for a kernel, which is the corrupted input, and its t."""

    def one(key):
        drawn = draw_step(model, empty_history(4), batch, 2, key)
        return project_rows(drawn, jnp.eye(SLOTS)[drawn.inputs]), drawn.t

    return jax.vmap(one)(keys)


def test_mean_and_covariance_of_the_projected_input(batch):
    """As of dense noise: mean s x, variance s^2 x^2 d / (1 - d) + sigma^2 / (1 - d), uncorrelated.

    For any other kernel mean and covariance of z follow from those of the identity.
    """
    dropout = 0.25
    model = DiffusionModel(None, SLOTS, loud_schedule(), dropout=dropout, noise_fraction=0.25)
    z, t = projected(model, jax.random.split(jax.random.key(0), 4 * DRAWS), batch)
    z, t = np.asarray(z, np.float64), np.asarray(t)
    x_0 = np.zeros((2, SLOTS))
    x_0[0, [1, 4, 9]] = 0.5, 1.0, 0.75
    c = model.schedule
    for row, time in ((0, 3), (1, 1)):
        draws = z[t[:, row] == time, row]
        signal = c.signal_scale[time] * x_0[row]
        variance = (signal**2 * dropout + c.noise_scale[time] ** 2) / (1 - dropout)
        error = (variance / len(draws)) ** 0.5
        np.testing.assert_array_less(np.abs(draws.mean(axis=0) - signal), 5 * error)
        centred = draws - signal
        products = centred[:, :, None] * centred[:, None, :]
        error = products.std(axis=0) / len(draws) ** 0.5
        found = np.abs(products.mean(axis=0) - np.diag(variance))
        np.testing.assert_array_less(found, 5 * error + 1e-9)


@pytest.mark.parametrize(("fraction", "width"), [(0.25, 3), (0.5, 5), (1.0, 10), (0.9, 10)])
def test_windows_are_equally_likely_and_share_no_slot(fraction, width):
    keys = jax.random.split(jax.random.key(1), DRAWS)
    windows = jax.vmap(lambda key: draw_window(key, SLOTS, fraction)[:2])(keys)
    slots, inside = (np.asarray(part) for part in windows)
    number = -(-SLOTS // width)
    hit = np.zeros((DRAWS, SLOTS), bool)
    np.put_along_axis(hit, slots, inside, axis=1)
    np.testing.assert_allclose(hit.mean(axis=0), 1 / number, atol=0.01)
    groups = np.arange(SLOTS) // width
    for marks in np.unique(hit, axis=0):
        assert len(set(groups[marks])) == 1
    assert (slots[:, 1:] - slots[:, :-1] == 1).all()
    assert slots.min() >= 0
    assert slots.max() < SLOTS


class TestError:
    """The error over all windows, averaged, is the whole error, and so is its gradient."""

    def every_window(self, model, params, drawn, entry):
        """Losses of each window in turn, the step being otherwise the same."""
        number = round(1 / model.error_fraction)
        width = -(-model.num_slots // number)
        for index in range(number):
            start = index * width
            begin = min(start, model.num_slots - width)
            slots = begin + jnp.arange(width, dtype=jnp.int32)
            window = Window(slots, slots >= start, number)
            outputs, share, place = error_slots(model, window, drawn.batch)
            changed = type(drawn)(
                **{**vars(drawn), "outputs": outputs, "share": share, "place": place}
            )
            yield losses_of_rows(model, params, changed, entry, params["output"]["kernel"][outputs])

    @pytest.mark.parametrize("hidden", [(8,), (5, 7)])
    @pytest.mark.parametrize("fraction", [0.5, 0.25, 1 / 7])
    @pytest.mark.parametrize("head", [(), (2, 3, 9, 36)])
    def test_mean_over_windows_is_the_dense_error(
        self, random_model, random_vectors, sparse, hidden, fraction, head
    ):
        model, params = random_model(
            0,
            hidden=hidden,
            schedule=loud_schedule(10),
            dropout=0.0,
            noise_fraction=1.0,
            error_fraction=fraction,
            head=head,
        )
        x_0 = jnp.asarray(random_vectors(1, 6, 37))
        drawn = draw_step(model, empty_history(10), sparse(np.asarray(x_0)), 6, jax.random.key(2))

        def windowed(params):
            entry = params["item_kernel"][drawn.inputs]
            losses = list(self.every_window(model, params, drawn, entry))
            return sum(losses) / len(losses)

        def dense(params):
            c = model.coefficients()
            noise = drawn.noise / c.noise_scale[drawn.t][:, None]
            x_t = q_sample(c, x_0, drawn.t, noise)
            output = model.denoiser(params)(x_t, drawn.t)
            return denoising_loss(c, "x0", output, x_0, x_t, noise, drawn.t)

        def with_gradient(form):
            return jax.jit(lambda p: (form(p), jax.grad(lambda p: jnp.mean(form(p)))(p)))(params)

        found, expected = with_gradient(windowed), with_gradient(dense)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * np.abs(b).max()),
            found[1],
            expected[1],
        )

    def test_each_window_is_drawn_as_often(self, random_model, random_vectors, sparse):
        model, params = random_model(0, error_fraction=0.25)
        batch = sparse(random_vectors(1, 6, 37))
        shares = jax.jit(
            jax.vmap(lambda key: draw_step(model, empty_history(10), batch, 6, key).share)
        )(jax.random.split(jax.random.key(0), 4000))
        # The last of four windows of 10 is cut to 7: one draw in four has three slots too many.
        assert (np.asarray(shares).sum(axis=1) < 40).mean() == pytest.approx(0.25, abs=0.03)
        loss = jax.jit(step.training_loss, static_argnums=(1, 4))
        first, second = (
            loss(params, model, empty_history(10), batch, 6, jax.random.key(seed))[0]
            for seed in (0, 1)
        )
        assert np.isfinite([first, second]).all()
        assert first != second
