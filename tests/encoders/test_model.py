"""A step on packed rows against the same step on left-padded rows."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pdrec_jax.data.batches import LANES, PACKED, Layout
from pdrec_jax.data.domains import merge_domains
from pdrec_jax.data.readers import read_log
from pdrec_jax.data.splits import leave_one_out
from pdrec_jax.encoders.layers import Rows
from pdrec_jax.encoders.model import TrainingData
from pdrec_jax.encoders.step import training_loss
from pdrec_jax.encoders.step_inputs import stack, training_rows

ITEMS, CANDIDATES, FINE, SHARE = 50, 6, 3, 0.3


def log_of(lengths, rng) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *lengths])
    return offsets, rng.integers(1, ITEMS + 1, offsets[-1]).astype(np.int32)


class TestTrainingRows:
    """Inputs, next items and whole histories, against slices of the histories themselves."""

    @given(
        lengths=st.lists(st.integers(1, 15), min_size=5, max_size=5),
        users=st.lists(st.integers(0, 4), min_size=4, max_size=4),
        seed=st.integers(0, 2**31),
    )
    @settings(
        deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def test_against_slices(self, histories, lengths, users, seed):
        rng = np.random.default_rng(seed)
        offsets, items = log_of(lengths, rng)
        events = histories(offsets, items, np.array(users), 5)
        batch = events.batch(rows=(4,))
        # One length of the flat events, so that one compilation serves all examples.
        padded = np.pad(items, (0, 75 - len(items)))
        data = SimpleNamespace(offsets=offsets.astype(np.int32), items=padded)
        inputs, following, whole = rows_jit(
            data.offsets, data.items, batch.users, batch.event[0], batch.segment[0]
        )
        for number, user in enumerate(users):
            own = items[offsets[user] : offsets[user + 1]].tolist()
            cells = np.flatnonzero(batch.segment[0] == number)

            def at(rows, cells=cells):
                return np.asarray(rows).reshape(-1)[cells].tolist()

            kept = own[-5:]
            assert at(whole.items) == kept
            assert at(whole.position) == list(range(5 - len(kept), 5))
            assert set(at(whole.pads)) == {5 - len(kept)}
            before = own[:-1][-5:]
            spare = len(kept) - len(before)
            assert at(inputs.items) == before + [0] * spare
            assert at(inputs.position)[: len(before)] == list(range(5 - len(before), 5))
            assert set(at(inputs.pads)) == {5 - len(before)}
            targets = np.array(at(following))[: len(before)]
            assert items[targets].tolist() == own[1:][-5:]
            assert ((targets > offsets[user]) & (targets < offsets[user + 1])).all()
            assert at(following)[len(before) :] == [0] * spare
        empty = np.asarray(batch.segment[0]) == 4
        assert (np.asarray(inputs.items)[empty] == 0).all()
        assert (np.asarray(whole.items)[empty] == 0).all()
        assert (np.asarray(following)[empty] == 0).all()

    def test_sampler_of_the_public_code(self, real_data, goldens, histories):
        golden = goldens("sampler_pdrec")
        logs = [
            read_log(real_data / f"amazon_{name}.inter.gz", ids="integer")
            for name in ("toy", "game")
        ]
        train = leave_one_out(merge_domains(*logs)).train
        users = np.searchsorted(train.user_ids, golden["u"])
        np.testing.assert_array_equal(train.user_ids[users], golden["u"])
        events = histories(train.offsets, train.items, users, 200)
        batch = events.batch()
        data = SimpleNamespace(offsets=jnp.asarray(train.offsets, jnp.int32), items=train.items)
        inputs, nexts = [], []
        for event, segment in zip(batch.event, batch.segment, strict=True):
            rows, following, _ = training_rows(data, batch.users, event, segment, 200)
            inputs.append(np.asarray(rows.items).reshape(-1))
            nexts.append(np.where(rows.items > 0, train.items[following], 0).reshape(-1))
        cells, row, column = events.places(batch)
        for name, found in (("seq", inputs), ("pos", nexts)):
            table = np.zeros((16, 200), np.int32)
            table[row, column] = np.concatenate(found)[cells]
            np.testing.assert_array_equal(table, golden[name], err_msg=name)
            assert np.concatenate(found).astype(bool).sum() == len(cells)
        # And the negatives that it drew are items that this sampler could draw as well.
        drawn = golden["neg"][:, 0]
        assert ((drawn > 0) == (golden["pos"] > 0)).all()
        for user, line in zip(users, drawn, strict=True):
            own = train.items[train.offsets[user] : train.offsets[user + 1]]
            assert not set(line[line > 0]) & set(own)


@jax.jit
def rows_jit(offsets, items, users, event, segment):
    data = SimpleNamespace(offsets=offsets, items=items)
    return training_rows(data, users, event, segment, 5)


def test_stack():
    first, second = (Rows(*(jnp.full((n, 3), n) for _ in range(4))) for n in (1, 2))
    both = stack(first, second)
    assert both.items[:, 0].tolist() == both.pads[:, 0].tolist() == [1, 2, 2]


packed_loss = jax.jit(jax.value_and_grad(training_loss), static_argnums=1)


@functools.cache
def padded_loss(twin):
    return jax.jit(jax.value_and_grad(twin.loss), static_argnums=2)


@dataclasses.dataclass(frozen=True)
class Case:
    """An encoder's fields, and rows that hold 5 users in any case."""

    max_length: int
    rows: tuple[int, ...]
    name: str = "sasrec"
    heads: int = 2
    blocks: int = 1
    attend_padding: bool = True

    @property
    def layout(self) -> Layout:
        return LANES if self.name == "gru4rec" else PACKED


CASES = {
    "one group": Case(6, (5,), blocks=2, attend_padding=False),
    "two groups": Case(130, (5, 5)),
    "GRU, one group": Case(6, (5,), "gru4rec"),
    "GRU, three groups": Case(40, (5, 5, 5), "gru4rec"),
    "GRU, spare rows": Case(20, (9, 7), "gru4rec"),
}


@st.composite
def users_of(draw, longest):
    """Lengths of 6 users, a batch of 5 of them (one may come twice) and a seed."""
    sizes = st.one_of(
        st.just(1), st.integers(2, min(longest, 60)), st.integers(1, 3 * longest), st.just(longest)
    )
    lengths = draw(st.lists(sizes, min_size=6, max_size=6))
    users = draw(st.lists(st.integers(0, 5), min_size=5, max_size=5))
    return lengths, users, draw(st.integers(0, 2**31))


class TestPackedEqualsPadded:
    """Loss and gradient to 1e-5, with every plugin on and the draws put in by hand."""

    @pytest.mark.parametrize("case", CASES)
    def test_it(self, case, small_model, histories, padded_sasrec, padded_gru4rec, given_negatives):
        case = CASES[case]
        longest, twin = case.max_length, padded_gru4rec(temperature=5.0)
        if case.name == "sasrec":
            twin = padded_sasrec(
                heads=case.heads, attend_padding=case.attend_padding, temperature=5.0
            )

        def check(drawn):
            lengths, users, seed = drawn
            if max(lengths[user] for user in users) < 2:
                return  # nothing to learn: see the next test
            model, params = small_model(
                ITEMS,
                ("hbr", "nns", "dpa"),
                seed=seed,
                encoder__max_length=longest,
                encoder__name=case.name,
                encoder__heads=case.heads,
                encoder__blocks=case.blocks,
                encoder__attend_padding=case.attend_padding,
                dpa__fine=FINE,
                dpa__weight=SHARE,
            )
            rng = np.random.default_rng(seed)
            offsets, items = log_of(lengths, rng)
            events = histories(offsets, items, np.array(users), longest)
            weights = rng.uniform(0, 3, 18 * longest).astype(np.float32)
            soft = rng.integers(1, ITEMS + 1, (6, CANDIDATES)).astype(np.int32)
            uniform, safe = rng.integers(1, ITEMS + 1, (2, 5, longest)).astype(np.int32)
            targets = events.targets()
            batch = events.batch(case.rows, case.layout)
            data = TrainingData(
                jnp.asarray(offsets, jnp.int32),
                jnp.asarray(np.pad(items, (0, 18 * longest - len(items)))),
                outside=None,
                weights=jnp.asarray(weights),
                pools=None,
                candidates=jnp.asarray(soft),
            )
            data = given_negatives(data, events.cells(uniform, batch), events.cells(safe, batch))
            found = packed_loss(params, model, data, batch, jax.random.key(0))
            wanted = padded_loss(twin)(
                params,
                {
                    "inputs": events.rows(skip_last=True),
                    "positive": np.where(targets > 0, items[targets], 0),
                    "negatives": [uniform, safe],
                    "weights": weights[targets],
                    "whole": events.rows(skip_last=False),
                    "soft": soft[users],
                },
                FINE,
                SHARE,
            )
            np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5, atol=1e-5)
            for (path, left), right in zip(
                jax.tree.leaves_with_path(found[1]), jax.tree.leaves(wanted[1]), strict=True
            ):
                name = jax.tree_util.keystr(path)
                np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5, err_msg=name)

        run = given(drawn=users_of(longest))(check)
        # The corners: one event, just full, one too many, three times too many, a user twice.
        corners = ([1, 2, longest, longest + 1, 3 * longest, 4], [0, 2, 3, 4, 4], 1)
        run = example(drawn=corners)(run)
        settings(deadline=None, max_examples=25, database=None)(run)()
