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
from pdrec_jax.diffusion.vectors import InteractionVectors, densify, gather_batch
from pdrec_jax.diffusion.windows import (
    Head,
    Window,
    choose_head,
    draw_step,
    draw_window,
    error_window,
    gather_rows,
    losses_of_rows,
    project_rows,
    split_vectors,
    width_of_windows,
)

SLOTS, DRAWS = 10, 60_000


def loud_schedule(steps: int = 4):
    return make_schedule(
        "linear-var", steps, noise_scale=1, noise_min=0.2, noise_max=0.6, fix_first_beta=False
    )


def head_of(slots: tuple[int, ...], num_slots: int) -> Head:
    return choose_head(np.isin(np.arange(num_slots), slots).astype(int), len(slots))


@functools.partial(jax.jit, static_argnums=0)
def projected(model, head, keys, batch):
    """z for many draws with the identity for a kernel, which is the corrupted input, and its t."""

    def one(key):
        drawn = draw_step(model, head, empty_history(4), batch, 2, key)
        width = drawn.noise.shape[1]
        rows = gather_rows(jnp.eye(SLOTS), head, drawn.entry, width, batch.far.slots)
        return project_rows(drawn, rows), drawn.t

    return jax.vmap(one)(keys)


@pytest.mark.parametrize("popular", [(4,), (1, 2, 4, 5, 8)])
def test_mean_and_covariance_of_the_projected_input(split, popular):
    """As of dense noise: mean s x, variance s^2 x^2 d / (1 - d) + sigma^2 / (1 - d), uncorrelated.

    For any other kernel mean and covariance of z follow from those of the identity.
    """
    dropout = 0.25
    model = DiffusionModel(None, SLOTS, loud_schedule(), dropout=dropout, noise_fraction=0.25)
    x_0 = np.zeros((2, SLOTS), np.float32)
    x_0[0, [1, 4, 9]] = 0.5, 1.0, 0.75
    head, keys = head_of(popular, SLOTS), jax.random.split(jax.random.key(0), 4 * DRAWS)
    z, t = projected(model, head, keys, split(x_0, head))
    z, t = np.asarray(z, np.float64), np.asarray(t)
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
    begin, inside = (np.asarray(part) for part in windows)
    assert width_of_windows(SLOTS, fraction) == width
    slots = begin[:, None] + np.arange(width)
    number = -(-SLOTS // width)
    hit = np.zeros((DRAWS, SLOTS), bool)
    np.put_along_axis(hit, slots, inside, axis=1)
    np.testing.assert_allclose(hit.mean(axis=0), 1 / number, atol=0.01)
    groups = np.arange(SLOTS) // width
    for marks in np.unique(hit, axis=0):
        assert len(set(groups[marks])) == 1
    assert slots.min() >= 0
    assert slots.max() < SLOTS


class TestError:
    """The error over all windows, averaged, is the whole error, and so is its gradient."""

    def every_window(self, model, params, head, drawn):
        """Losses of each window in turn, the step being otherwise the same."""
        number, width = (
            round(1 / model.error_fraction),
            width_of_windows(model.num_slots, model.error_fraction),
        )
        entry, exit, far = params["item_kernel"], params["output"]["kernel"], drawn.batch.far.slots
        for index in range(number):
            start = index * width
            begin = min(start, model.num_slots - width)
            window = Window(jnp.int32(begin), begin + jnp.arange(width) >= start, number)
            share, place = error_window(window, head, drawn.batch)
            changed = type(drawn)(
                **{**vars(drawn), "exit": window.begin, "share": share, "place": place}
            )
            rows = (
                gather_rows(entry, head, drawn.entry, drawn.noise.shape[1], far),
                gather_rows(exit, head, window.begin, width, far),
            )
            yield losses_of_rows(model, params, head, changed, *rows)

    @pytest.mark.parametrize(
        ("hidden", "fraction", "popular"),
        [((8,), 0.5, (4,)), ((8,), 1 / 7, (2, 3, 9, 36)), ((5, 7), 0.25, (2, 3, 9, 36))],
    )
    def test_mean_over_windows_is_the_dense_error(
        self, random_model, random_vectors, split, hidden, fraction, popular
    ):
        model, params = random_model(
            0,
            hidden=hidden,
            schedule=loud_schedule(10),
            dropout=0.0,
            noise_fraction=1.0,
            error_fraction=fraction,
        )
        head = head_of(popular, 37)
        x_0 = jnp.asarray(random_vectors(1, 6, 37))
        batch = split(np.asarray(x_0), head)
        drawn = draw_step(model, head, empty_history(10), batch, 6, jax.random.key(2))

        def windowed(params):
            losses = list(self.every_window(model, params, head, drawn))
            return sum(losses) / len(losses)

        def dense(params):
            c = model.coefficients()
            carried = drawn.noise.at[:, head.slots].add(drawn.head_noise)
            noise = carried / c.noise_scale[drawn.t][:, None]
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

    def test_each_window_is_drawn_as_often(self, random_model, random_vectors, split):
        model, params = random_model(0, error_fraction=0.25)
        head = head_of((36,), 37)
        batch = split(random_vectors(1, 6, 37), head)
        shares = jax.jit(
            jax.vmap(lambda key: draw_step(model, head, empty_history(10), batch, 6, key).share)
        )(jax.random.split(jax.random.key(0), 4000))
        # The last of four windows of 10 is cut to 7, and the head's slot counts elsewhere: one
        # draw in four has four slots too many.
        sums = np.asarray(shares).sum(axis=1)
        assert set(sums) == {24, 40}
        assert (sums < 40).mean() == pytest.approx(0.25, abs=0.03)
        loss = jax.jit(step.windowed_training_loss, static_argnums=(1, 5))
        first, second = (
            loss(params, model, head, empty_history(10), batch, 6, jax.random.key(seed))[0]
            for seed in (0, 1)
        )
        assert np.isfinite([first, second]).all()
        assert first != second


def test_vectors_are_split_without_loss(random_vectors):
    x = random_vectors(3, 7, SLOTS)
    users, slots = np.nonzero(x)
    offsets = np.concatenate([[0], np.cumsum((x != 0).sum(axis=1))])
    whole = InteractionVectors(offsets, slots.astype(np.int32), x[users, slots], SLOTS)
    head = choose_head((x != 0).sum(axis=0), 3)
    counts = (x != 0).sum(axis=0)
    assert counts[head.slots].min() >= np.delete(counts, head.slots).max()
    parts = split_vectors(whole, head)
    near, far = (
        np.asarray(densify(gather_batch(part, np.arange(7), 100), 7, part.num_slots))
        for part in parts
    )
    np.testing.assert_array_equal(near, x[:, head.slots])
    np.testing.assert_array_equal(far[:, head.slots], 0)
    np.testing.assert_array_equal(far + np.where(head.inside, x, 0), x)
