"""Rows that are read at the ends of histories alone: the same states, gradients and losses."""

import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrec_jax.data.batches import LANES
from pdrec_jax.encoders import registry
from pdrec_jax.encoders.cl4srec import CL4SRec
from pdrec_jax.encoders.encoder import Encoder
from pdrec_jax.encoders.ends import Ends, slots_of
from pdrec_jax.encoders.layers import Attention, FeedForward, Rows
from pdrec_jax.encoders.model import final_states
from pdrec_jax.encoders.sasrec import SASRec
from pdrec_jax.encoders.step import training_loss
from pdrec_jax.encoders.step_inputs import training_rows

LENGTHS, MOST = (1, 2, 3, 5, 11, 12, 13, 30, 4, 4), 12


def plain_slots(segment: np.ndarray, occupied: np.ndarray, slots: int):
    """Slots by walking over the cells."""
    of_cell, last = np.full(segment.size, slots), np.zeros(slots, int)
    found, cell = -1, -1
    for segments, there in zip(segment.tolist(), occupied.tolist(), strict=True):
        seen = set()
        for user, is_there in zip(segments, there, strict=True):
            cell += 1
            if is_there:
                found += user not in seen
                seen.add(user)
                of_cell[cell] = found if found < slots else found + 1
                if found < slots:
                    last[found] = cell
    return of_cell, last


ROWS, WIDTH, EMPTY = 4, 6, 99


@st.composite
def packed(draw) -> tuple[np.ndarray, np.ndarray]:
    """Rows of histories, any cells of which may be empty."""
    rows, user = [], itertools.count()
    for _ in range(ROWS):
        row = []
        for size in draw(st.lists(st.integers(1, 4), max_size=4)):
            some = next(user)
            row += [(some, draw(st.booleans())) for _ in range(size)]
        rows.append([*row[:WIDTH], *[(EMPTY, False)] * (WIDTH - len(row))])
    table = np.array(rows, dtype=np.int32)
    return table[:, :, 0], table[:, :, 1] > 0


slots_jit = jax.jit(slots_of, static_argnums=2)


@given(rows=packed(), slots=st.sampled_from([1, 3, 16]), first=st.sampled_from([0, 2]))
@settings(deadline=None, max_examples=80)
def test_slots(rows, slots, first):
    segment, occupied = rows
    found = slots_jit(segment, occupied, Ends(first, slots))
    of_cell, last = plain_slots(segment[first:], occupied[first:], slots)
    np.testing.assert_array_equal(found.of_cell, of_cell)
    np.testing.assert_array_equal(found.last, last)
    np.testing.assert_array_equal(found.cells, last + first * WIDTH)


def test_ends_are_static():
    assert jax.tree.leaves(Ends(1, 2)) == []
    assert (
        len(
            jax.tree.leaves(
                slots_of(jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3)) > 0, Ends(0, 2))
            )
        )
        == 2
    )


def test_an_empty_cell_has_no_say_however_small_the_weights() -> None:
    """Beside logits below -88 the weight of one that is 0 overflows, and so would its gradient."""
    attention = Attention(4, 1, 0.0, rngs=nnx.Rngs(0))
    attention.query[...], attention.key[...] = 20 * jnp.eye(4), -20 * jnp.eye(4)
    cells = jnp.asarray(np.random.default_rng(0).uniform(0.9, 1, (6, 4)), jnp.float32)
    segment = jnp.asarray([[0, 0, 0, 1, 1, 1]], jnp.int32)

    def attend(cells, count):
        cells = jnp.where(jnp.arange(count)[:, None] < 5, cells[:count], 0)
        occupied = jnp.arange(count)[None, :] < 5
        slots = slots_of(segment[:, :count], occupied, Ends(0, 2))
        found = attention.of_ends(cells[slots.last], cells, slots, jnp.zeros(2), None)
        return jnp.sum(found @ jnp.arange(4.0)), found

    run = jax.jit(jax.value_and_grad(attend, has_aux=True), static_argnums=1)
    (_, full), gradient = run(cells, 5)
    (_, found), other = run(cells, 6)
    assert np.abs(gradient[:5]).min() > 0
    np.testing.assert_allclose(found, full, rtol=1e-5)
    np.testing.assert_allclose(other, gradient, rtol=1e-5)


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


@functools.partial(jax.jit, static_argnums=1)
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

    @pytest.mark.parametrize("key", [None, 5], ids=["evaluation", "dropout"])
    def test_of_all_rows(self, made, inputs, key):
        model, params = made
        key = None if key is None else jax.random.key(key)
        vectors = params["item_embedding"][inputs.whole.items]
        full, ended = (
            np.asarray(encode(params, model, vectors, inputs.whole, ends, key))
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
            states = encode(params, model, vectors, rows, ends, jax.random.key(1))
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


class Averaging(CL4SRec):
    """Reads all states of views that were read at their ends."""

    def own_loss(self, states, views, users):
        real = [(view.items > 0)[:, None] for view in views]
        return sum(
            jnp.sum(jnp.where(there, state, 0) ** 2)
            for state, there in zip(states, real, strict=True)
        )


class Doubling(SASRec):
    """One of a user's own, which knows nothing of ends."""

    def __call__(self, vectors, rows, key=None):
        return 2 * super().__call__(vectors, rows, key) + 1


class Together(Doubling):
    def encode(self, vectors, rows, key):
        return [states + 1 for states in super().encode(vectors, rows, key)]


class Forward(FeedForward):
    def __call__(self, x, key):
        return super().__call__(x, key) + x


class OwnBlock(SASRec):
    """Blocks that do something else than ours."""

    def __init__(self, config, num_items, *, rngs):
        super().__init__(config, num_items, rngs=rngs)
        for block in self.blocks:
            block.forward = Forward(config.width, config.dropout, rngs=rngs)


OWN = {kind.__name__.lower(): kind for kind in (Viewing, Averaging, Doubling, Together, OwnBlock)}


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
        """`make(name, variant)`: a task in which the key decides on all that is drawn."""
        for name, kind in OWN.items():
            registry.register(name, kind.__name__, kind)

        def of(name, variant="base", **fields):
            return built(
                variant,
                encoder__name=name,
                encoder__dropout=0.2,
                encoder__blocks=2,
                dpa__coarse=8,
                dpa__fine=3,
                **fields,
            )

        return of

    @pytest.mark.parametrize(
        ("name", "variant", "others"),
        [
            ("sasrec", "hbr+nns+dpa", 1),
            ("cl4srec", "base", 2),
            ("cl4srec", "hbr+nns+dpa", 3),
            ("gru4rec", "dpa", 1),
            ("doubling", "dpa", 1),
            ("ownblock", "dpa", 1),
        ],
    )
    def test_loss_and_gradient_as_without(self, make, asked, monkeypatch, name, variant, others):
        task = make(name, variant)
        asked.clear()  # what was asked when it was made
        loss, gradient = of_step(task)
        assert len(asked) == 1
        for end in itertools.chain(*asked):
            assert end.histories == others * 8
            assert end.first > 0
        monkeypatch.setattr(Encoder, "encode_to_ends", lambda self, *given: self.encode(*given[:3]))
        without, its_gradient = of_step(task)
        np.testing.assert_allclose(loss, without, rtol=1e-6)
        for (path, left), right in zip(
            jax.tree.leaves_with_path(gradient), jax.tree.leaves(its_gradient), strict=True
        ):
            where = jax.tree_util.keystr(path)
            np.testing.assert_allclose(left, right, rtol=0, atol=1e-6, err_msg=where)

    # All of a view is read that lies between DPA's rows and the input, or by a loss of one's own.
    @pytest.mark.parametrize(("name", "variant"), [("viewing", "dpa"), ("averaging", "base")])
    def test_views_of_which_more_is_read(self, make, asked, name, variant):
        task = make(name, variant)
        asked.clear()
        jax.eval_shape(lambda: of_step(task))
        assert not asked

    @pytest.mark.parametrize(
        "name", ["sasrec", "cl4srec", "gru4rec", "doubling", "together", "ownblock"]
    )
    def test_states_of_the_evaluation(self, make, asked, monkeypatch, inputs, name):
        task = make(name)
        asked.clear()
        params = task.initial()["params"]
        given = params, task.model, inputs.offsets, inputs.items
        batch = inputs.batch if name != "gru4rec" else inputs.lanes
        states = final_states(*given, batch)
        assert asked == [[Ends(0, len(LENGTHS))] * len(batch.event)]
        monkeypatch.setattr(Encoder, "encode_to_ends", lambda self, *given: self.encode(*given[:3]))
        np.testing.assert_allclose(states, final_states(*given, batch), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("lengths", [(3, 4, 5), (100,)])
    def test_where_a_group_has_no_rows(self, make, monkeypatch, histories, lengths):
        # Of rows as long as the default's one group is empty for a few users.
        task = make("sasrec", encoder__max_length=200)
        params = task.initial()["params"]
        offsets = np.cumsum([0, *lengths])
        items = np.random.default_rng(0).integers(1, 201, offsets[-1]).astype(np.int32)
        batch = histories(offsets, items, np.arange(len(lengths)), 200).batch()
        assert min(len(event) for event in batch.event) == 0
        given = params, task.model, jnp.asarray(offsets, jnp.int32), jnp.asarray(items), batch
        states = final_states(*given)
        monkeypatch.setattr(Encoder, "encode_to_ends", lambda self, *given: self.encode(*given[:3]))
        np.testing.assert_allclose(states, final_states(*given), rtol=0, atol=1e-6)

    def test_more_histories_than_were_said(self, small_model, inputs):
        model, params = small_model(40, encoder__blocks=1)
        vectors = params["item_embedding"][inputs.whole.items]
        states = encode(params, model, vectors, inputs.whole, Ends(0, len(LENGTHS) - 1))
        last = is_last(inputs.whole)
        assert np.isnan(states[last]).all(axis=-1).sum() == 1

    @pytest.mark.parametrize("name", ["sasrec", "cl4srec"])
    def test_elsewhere_all_is_encoded(self, make, asked, monkeypatch, name):
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        task = make(name, "dpa")
        asked.clear()
        of_step(task)
        assert not asked
