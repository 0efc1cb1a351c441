"""What a step of an encoder draws, and what that comes to in its loss."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.encoders.model import Batch, EncoderModel, Params
from pdrec_jax.encoders.step import loss_of_vectors, training_loss
from pdrec_jax.encoders.step_inputs import StepInputs, step_inputs
from pdrec_jax.encoders.task import EncoderTask


class Step(NamedTuple):
    task: EncoderTask
    params: Params
    batch: Batch
    inputs: StepInputs

    def cells(self) -> list[tuple[int, int]]:
        """The cells that have a next item, each with its user."""
        segments = np.concatenate([np.asarray(s).reshape(-1) for s in self.batch.segment])
        return [
            (cell, int(self.batch.users[segments[cell]]))
            for cell in np.flatnonzero(self.inputs.valid)
        ]

    def history(self, user: int) -> np.ndarray:
        begin, end = self.task.offsets[user : user + 2]
        return np.asarray(self.task.data.items)[begin:end]

    def loss(self, ids: dict[str, Any] | None = None, **fields: Any) -> float:
        """Of the step with other items, by a model with other fields."""
        ids = self.inputs.ids if ids is None else ids
        model: EncoderModel = dataclasses.replace(self.task.model, **fields)
        vectors = {name: self.params["item_embedding"][some] for name, some in ids.items()}
        given = self.params, model, self.task.data, self.inputs, vectors
        return float(loss_of_vectors(*given)[0])

    def loss_of(self, name: str) -> float:
        """Mean loss of some of the drawn items, were they the positives."""
        ids = {"positive": self.inputs.ids[name]} | {
            name: some
            for name, some in self.inputs.ids.items()
            if name.startswith(("uniform", "safe", "rows"))
        }
        return self.loss(ids, positive_weight=2.0) - self.loss(ids, positive_weight=1.0)


@pytest.fixture
def step(built):
    def make(variant: str = "base", *, seed: int = 3, **fields: Any) -> Step:
        task = built(variant, encoder__blocks=1, **fields)
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), task.layout(1))
        params = task.initial()["params"]
        key = jax.random.key(seed)
        return Step(task, params, batch, step_inputs(params, task.model, task.data, batch, key))

    return make


def drawn(step: Step, name: str) -> dict[str, np.ndarray]:
    """What is drawn of a kind, by name."""
    return {key: np.asarray(ids) for key, ids in step.inputs.ids.items() if key.startswith(name)}


def shared(draws: dict[str, np.ndarray], step: Step) -> float:
    """The largest share of positions at which two draws are the same item."""
    valid, arrays = np.asarray(step.inputs.valid), list(draws.values())
    return max((arrays[n] == arrays[n - 1])[valid].mean() for n in range(len(arrays)))


class TestUniformNegatives:
    def test_each_is_outside_the_history_and_none_is_another(self, step):
        found, one = step(encoder__negatives=3), step(encoder__negatives=1)
        draws = drawn(found, "uniform")
        assert list(draws) == ["uniform", "uniform1", "uniform2"]
        assert list(drawn(one, "uniform")) == ["uniform"]
        np.testing.assert_array_equal(draws["uniform"], one.inputs.ids["uniform"])
        assert shared(draws, found) < 0.1
        for cell, user in found.cells():
            assert not np.isin([draw[cell] for draw in draws.values()], found.history(user)).any()

    def test_the_loss_is_their_mean(self, step):
        found = step(encoder__negatives=3)
        rest = {n: ids for n, ids in found.inputs.ids.items() if not n.startswith("uniform")}
        alone = [found.loss({**rest, "uniform": d}) for d in drawn(found, "uniform").values()]
        assert len(set(alone)) == 3
        assert found.loss() == pytest.approx(np.mean(alone), rel=1e-6)


def test_safe_negatives_are_so_many_of_the_users_pool(step):
    found, one = step("nns", nns__drawn=3), step("nns", nns__drawn=1)
    draws, pools = drawn(found, "safe"), np.asarray(found.task.data.pools)
    assert list(draws) == ["safe", "safe1", "safe2"]
    np.testing.assert_array_equal(draws["safe"], one.inputs.ids["safe"])
    assert shared(draws, found) < 0.2
    for cell, user in found.cells():
        assert np.isin([draw[cell] for draw in draws.values()], pools[user]).all()


@pytest.mark.parametrize(
    ("variant", "placement", "expected"),
    [("base", "instead", (4, 0)), ("nns", "instead", (2, 2)), ("hbr+nns", "beside", (4, 2))],
)
def test_a_safe_negative_in_place_of_a_uniform_one(built, variant, placement, expected):
    fields = {"encoder__negatives": 4, "nns__drawn": 2, "nns__placement": placement}
    model = built(variant, **fields).model
    assert (model.negatives, model.nns) == expected


class TestDrawnPositives:
    """DPA with candidates that every position draws."""

    def test_they_are_candidates_of_the_positions_user(self, step):
        found = step("dpa", dpa__drawn=2)
        draws, candidates = drawn(found, "likely"), np.asarray(found.task.data.candidates)
        assert list(draws) == ["likely", "likely1"]
        assert "soft" not in found.inputs.ids
        # Whole histories are not encoded.
        assert all(len(parts) == 1 for parts in found.inputs.groups)
        assert shared(draws, found) < 2 / candidates.shape[1]
        for cell, user in found.cells():
            assert np.isin([draw[cell] for draw in draws.values()], candidates[user]).all()

    def test_the_likelier_are_drawn_oftener_where_the_config_says_so(self, step):
        def mean_rank(draw_by: str) -> float:
            found = step("dpa", dpa__drawn=4, dpa__draw_by=draw_by)
            candidates = np.asarray(found.task.data.candidates)
            draws = drawn(found, "likely").values()
            ranks = [
                np.flatnonzero(candidates[user] == draw[cell])[0] + 1
                for cell, user in found.cells()
                for draw in draws
            ]
            return float(np.mean(ranks))

        # Of 8 candidates, all alike or rank r with probability log(1 + 1/r) / log 9.
        expected = sum(r * np.log1p(1 / r) for r in range(1, 9)) / np.log(9)
        assert mean_rank("uniform") == pytest.approx(4.5, abs=0.4)
        assert mean_rank("rank") == pytest.approx(expected, abs=0.4)

    def test_other_draws_are_as_without(self, step):
        with_dpa = step("nns+dpa", dpa__drawn=1).inputs.ids
        for name, ids in step("nns").inputs.ids.items():
            np.testing.assert_array_equal(with_dpa[name], ids)

    def test_the_loss_is_that_of_the_base_and_theirs(self, step):
        found = step("dpa", dpa__drawn=2, dpa__weight=0.3)
        expected = 0.3 * np.mean([found.loss_of("likely"), found.loss_of("likely1")])
        assert found.loss() - step().loss() == pytest.approx(expected, rel=1e-4)
        task, params, batch, _ = found
        given = params, task.model, task.data, batch, jax.random.key(3)
        assert float(training_loss(*given)) == pytest.approx(found.loss(), rel=1e-6)


class TestHistoryPositives:
    """A base with more positives from the user's own history."""

    def test_they_are_of_the_positions_user(self, step):
        counts: dict[int, int] = {}
        for seed in range(20):
            found = step(encoder__history_weight=0.1, seed=seed)
            ids = np.asarray(found.inputs.ids["history"])
            for cell, user in found.cells():
                (places,) = np.nonzero(found.history(user) == ids[cell])
                assert len(places)
                counts[int(places[0])] = counts.get(int(places[0]), 0) + 1
        # Early and late items alike: each history has a first and a second item.
        assert counts[0] == pytest.approx(counts[1], rel=0.2)

    @pytest.mark.parametrize("weight", [0.1, 0.4])
    def test_the_loss_is_that_of_the_base_and_theirs(self, step, weight):
        found = step(encoder__history_weight=weight)
        expected = weight * found.loss_of("history")
        assert found.loss() - step().loss() == pytest.approx(expected, rel=1e-3)


def test_the_balance_of_positives_and_negatives(step):
    once, twice, thrice = (step(encoder__positive_weight=w).loss() for w in (1.0, 2.0, 3.0))
    assert twice > once
    assert thrice - twice == pytest.approx(twice - once, rel=1e-4)
