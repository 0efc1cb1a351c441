"""Rows that are read at the ends of histories alone: the same states, gradients and losses."""

import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrec_jax.data.batches import LANES
from pdrec_jax.encoders import model as model_module
from pdrec_jax.encoders import registry
from pdrec_jax.encoders.encoder import Encoder
from pdrec_jax.encoders.ends import Ends, slots_of
from pdrec_jax.encoders.layers import Rows, dropout
from pdrec_jax.encoders.model import final_states, training_loss, training_rows
from pdrec_jax.encoders.sasrec import SASRec

LENGTHS, MOST = (1, 2, 3, 5, 11, 12, 13, 30, 4, 4), 12


def plain_slots(segment: np.ndarray, occupied: np.ndarray, histories: int):
    """Slots by walking over the cells."""
    of_cell, last = np.full(segment.size, histories), np.zeros(histories, int)
    found, cell = -1, -1
    for segments, there in zip(segment.tolist(), occupied.tolist(), strict=True):
        before = None
        for one, is_there in zip(segments, there, strict=True):
            cell += 1
            here = one if is_there else None
            if here is not None:
                found += here != before
                of_cell[cell], last[found] = found, cell
            before = here
    return of_cell, last


@st.composite
def packed(draw) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows of histories, some of which leave their last cells empty, or all of them."""
    width, rows, user = draw(st.integers(1, 8)), [], itertools.count()
    for _ in range(draw(st.integers(1, 5))):
        sizes = draw(st.lists(st.integers(1, 4), max_size=4))
        row = []
        for size in sizes:
            some, kept = next(user), draw(st.integers(0, size))
            row += [(some, cell < kept) for cell in range(size)]
        rows.append([*row[:width], *[(99, False)] * (width - len(row))])
    table = np.array(rows, dtype=np.int32)
    occupied = table[:, :, 1] > 0
    count = len({*table[:, :, 0][occupied].tolist()})
    return table[:, :, 0], occupied, count


@given(rows=packed(), more=st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_slots(rows, more):
    segment, occupied, count = rows
    found = slots_of(jnp.asarray(segment), jnp.asarray(occupied), max(count + more, 1))
    of_cell, last = plain_slots(segment, occupied, max(count + more, 1))
    np.testing.assert_array_equal(found.of_cell, of_cell)
    np.testing.assert_array_equal(found.last, last)


@pytest.fixture
def inputs(histories) -> SimpleNamespace:
    """The rows of some users' whole histories and of their inputs."""
    offsets = np.cumsum([0, *LENGTHS])
    items = np.random.default_rng(3).integers(1, 41, offsets[-1]).astype(np.int32)
    batch = histories(offsets, items, np.arange(len(LENGTHS)), MOST).batch()
    lanes = histories(offsets, items, np.arange(len(LENGTHS)), MOST).batch(layout=LANES)
    data = SimpleNamespace(offsets=jnp.asarray(offsets, jnp.int32), items=jnp.asarray(items))
    (event,), (segment,) = batch.event, batch.segment
    given, _, whole = training_rows(data, batch.users, event, segment, MOST)
    return SimpleNamespace(
        given=given,
        whole=whole,
        batch=batch,
        lanes=lanes,
        offsets=data.offsets,
        items=data.items,
    )


@functools.partial(jax.jit, static_argnums=(1, 4))
def encode(params, model, vectors, rows, ends, key=None):
    return model.encoder(params)(vectors, rows, key, ends)


def below(*parts: Rows) -> Rows:
    return Rows(*(jnp.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def is_last(rows: Rows) -> np.ndarray:
    return np.asarray((rows.items > 0) & (rows.position == MOST - 1))


@pytest.mark.parametrize("attend_padding", [True, False])
@pytest.mark.parametrize("blocks", [1, 2])
class TestSASRec:
    @pytest.fixture
    def made(self, small_model, attend_padding, blocks):
        return small_model(
            40,
            encoder__blocks=blocks,
            encoder__heads=2,
            encoder__dropout=0.3,
            encoder__attend_padding=attend_padding,
        )

    def test_of_all_rows(self, made, inputs):
        model, params = made
        vectors = params["item_embedding"][inputs.whole.items]
        full, ended = (
            np.asarray(encode(params, model, vectors, inputs.whole, ends))
            for ends in (None, Ends(0, len(LENGTHS)))
        )
        last = is_last(inputs.whole)
        assert last.sum() == len(LENGTHS)
        np.testing.assert_allclose(ended[last], full[last], rtol=0, atol=1e-5)
        # A history's cells all hold its end, and an empty cell what it has without ends.
        segment, occupied = np.asarray(inputs.whole.segment), np.asarray(inputs.whole.items) > 0
        for user in range(len(LENGTHS)):
            own = ended[(segment == user) & occupied]
            np.testing.assert_array_equal(own, np.broadcast_to(own[-1], own.shape))
        assert (~occupied).any()
        np.testing.assert_allclose(ended[~occupied], full[~occupied], rtol=0, atol=1e-6)

    def test_of_some_rows_and_their_gradient(self, made, inputs):
        model, params = made
        # Others between: inputs leave each history's last cell empty.
        rows = below(inputs.given, inputs.whole, inputs.given)
        first = len(inputs.given.items)
        where = np.ones(rows.items.shape, bool)
        where[first:] = is_last(rows)[first:]
        readout = np.random.default_rng(0).normal(size=(*rows.items.shape, 8)).astype(np.float32)
        readout = jnp.where(where[:, :, None] & (rows.items > 0)[:, :, None], readout, 0)

        def read(params, ends):
            vectors = params["item_embedding"][rows.items]
            states = encode(params, model, vectors, rows, ends)
            return jnp.sum(states * readout), states

        run = jax.jit(jax.value_and_grad(read, has_aux=True), static_argnums=1)
        (full, states), slow = run(params, None)
        (ended, some), fast = run(params, Ends(first, 2 * len(LENGTHS)))
        np.testing.assert_allclose(ended, full, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(some[:first], states[:first], rtol=0, atol=1e-5)
        for name, left, right in zip(
            map(str, jax.tree.leaves_with_path(fast)),
            jax.tree.leaves(fast),
            jax.tree.leaves(slow),
            strict=True,
        ):
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4, err_msg=name)

    def test_it_sees_its_own_history_alone(self, made, inputs):
        model, params = made
        rows, ends = inputs.whole, Ends(0, len(LENGTHS))
        vectors = params["item_embedding"][rows.items]
        before = np.asarray(encode(params, model, vectors, rows, ends))
        for user in range(len(LENGTHS)):
            own = np.asarray(rows.segment) == user
            other = jnp.where(own[:, :, None], vectors + 1, vectors)
            after = np.asarray(encode(params, model, other, rows, ends))
            np.testing.assert_array_equal(before[~own], after[~own])
            assert np.abs(before[own] - after[own]).max() > 1e-3


class TestDropout:
    """It is drawn otherwise, at the same rates."""

    def test_of_the_weights(self, monkeypatch, small_model, inputs):
        rates, shapes = [], []

        def seen(x, rate, key):
            rates.append(rate)
            shapes.append(x.shape)
            return dropout(x, rate, key)

        model, params = small_model(40, encoder__blocks=1, encoder__heads=2, encoder__dropout=0.3)
        monkeypatch.setattr("pdrec_jax.encoders.layers.dropout", seen)
        monkeypatch.setattr("pdrec_jax.encoders.sasrec.dropout", seen)
        rows = inputs.whole
        vectors = params["item_embedding"][rows.items]
        model.encoder(params)(vectors, rows, jax.random.key(0), Ends(0, len(LENGTHS)))
        assert rates == [0.3] * 4
        cells, ends = rows.items.size, len(LENGTHS)
        assert shapes == [vectors.shape, (cells, 2), (1, ends, 8), (1, ends, 8)]

    def test_on_average_it_changes_nothing_that_is_linear(self, small_model, inputs):
        model, params = small_model(40, encoder__blocks=1, encoder__heads=2, encoder__dropout=0.3)
        rows, count = inputs.whole, len(LENGTHS)
        attention = model.encoder(params).blocks[0].attention
        slots = slots_of(rows.segment, rows.items > 0, count)
        rng = np.random.default_rng(1)
        x = jnp.asarray(rng.normal(size=(rows.items.size, 8)), jnp.float32)
        x = jnp.where((rows.items > 0).reshape(-1)[:, None], x, 0)
        queries, pads = x[slots.last], jnp.zeros(count)

        @jax.jit
        @jax.vmap
        def drawn(key):
            return attention.of_ends(queries, x, slots, pads, key)

        keys = jax.random.split(jax.random.key(0), 2000)
        many = np.asarray(drawn(keys))
        without = np.asarray(attention.of_ends(queries, x, slots, pads, None))
        spread = many.std(0) / np.sqrt(len(keys))
        assert (spread > 0).any()
        assert (np.abs(many.mean(0) - without) < 5 * spread + 1e-5).all()


@pytest.fixture
def asked(monkeypatch) -> list[list[Ends]]:
    """What the steps ask of encoders."""
    found, ask = [], Encoder.encode_to_ends

    def encode_to_ends(self, vectors, rows, key, ends):
        found.append(list(ends))
        return ask(self, vectors, rows, key, ends)

    monkeypatch.setattr(Encoder, "encode_to_ends", encode_to_ends)
    return found


class Viewing(SASRec):
    """Reads all states of its view."""

    def views(self, rows, key):
        return (rows,)

    def own_loss(self, states, views, users):
        (state,), (view,) = states, views
        return jnp.sum(jnp.where((view.items > 0)[:, None], state, 0) ** 2)


class Doubling(SASRec):
    """One of a user's own, which knows nothing of ends."""

    def __call__(self, vectors, rows, key=None):
        return 2 * super().__call__(vectors, rows, key) + 1


class Together(Doubling):
    def encode(self, vectors, rows, key):
        return [states + 1 for states in super().encode(vectors, rows, key)]


def of_step(task):
    """The loss of a task's first step, and its gradient."""
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), task.layout(1))
    params = task.initial()["params"]
    key = jax.random.key(3)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return training_loss(params, task.model, task.data, batch, key)

    return loss(params)


class TestStep:
    @pytest.fixture
    def make(self, own_encoders, built):
        """`make(name, variant)`: a task without dropout, in which all else is given by the key."""
        registry.register("viewing", "Viewing", Viewing)
        registry.register("doubling", "Doubling", Doubling)
        registry.register("together", "Together", Together)

        def of(name, variant="base"):
            return built(
                variant,
                encoder__name=name,
                encoder__dropout=0.0,
                encoder__blocks=2,
                dpa__coarse=8,
                dpa__fine=3,
            )

        return of

    @pytest.mark.parametrize(
        ("name", "variant", "others"),
        [
            ("sasrec", "base", 0),
            ("sasrec", "hbr+nns+dpa", 1),
            ("cl4srec", "base", 2),
            ("cl4srec", "hbr+nns+dpa", 3),
            ("gru4rec", "dpa", 1),
            ("doubling", "dpa", 1),
            ("viewing", "base", 0),
            ("viewing", "dpa", 0),  # a view is between, all of which is read
        ],
    )
    def test_loss_and_gradient_as_without(self, make, asked, monkeypatch, name, variant, others):
        task = make(name, variant)
        loss, gradient = of_step(task)
        assert len(asked) == (others > 0)
        for end in itertools.chain(*asked):
            assert end.histories == others * 8
            assert end.first > 0
        monkeypatch.setattr(
            model_module,
            "_encode",
            lambda encoder, model, vectors, rows, key, ends: encoder.encode(vectors, rows, key),
        )
        without, its_gradient = of_step(task)
        np.testing.assert_allclose(loss, without, rtol=1e-6)
        for (path, left), right in zip(
            jax.tree.leaves_with_path(gradient), jax.tree.leaves(its_gradient), strict=True
        ):
            where = jax.tree_util.keystr(path)
            np.testing.assert_allclose(left, right, rtol=0, atol=1e-6, err_msg=where)

    @pytest.mark.parametrize("name", ["sasrec", "cl4srec", "gru4rec", "doubling", "together"])
    def test_states_of_the_evaluation(self, make, asked, monkeypatch, inputs, name):
        task = make(name)
        params = task.initial()["params"]
        given = params, task.model, inputs.offsets, inputs.items
        batch = inputs.batch if name != "gru4rec" else inputs.lanes
        states = final_states(*given, batch)
        assert asked == [[Ends(0, len(LENGTHS))] * len(batch.event)]
        monkeypatch.setattr(Encoder, "encode_to_ends", lambda self, *given: self.encode(*given[:3]))
        np.testing.assert_allclose(states, final_states(*given, batch), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("name", ["sasrec", "cl4srec"])
    def test_elsewhere_all_is_encoded(self, make, asked, monkeypatch, name):
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        of_step(make(name, "dpa"))
        assert not asked
