"""The diffusion stage: what it builds, and an epoch that is interrupted between two dispatches."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from pdrec_jax.data.interactions import from_events
from pdrec_jax.data.simulator import simulate
from pdrec_jax.data.splits import Split, leave_one_out
from pdrec_jax.diffusion import optimise, stage
from pdrec_jax.diffusion import task as task_module
from pdrec_jax.diffusion.task import DiffusionTask
from pdrec_jax.errors import UserError
from pdrec_jax.evaluation.protocol import draw_candidates, get_protocol
from pdrec_jax.settings import default_config, seeded
from pdrec_jax.training import LoopSettings, Unfinished

pytestmark = pytest.mark.loose_jax("dtypes")


def built(protocol: str = "strict", **fields: float) -> tuple[Split, DiffusionTask, dict[str, Any]]:
    """A split, the task and the scorers of its test and validation items."""
    split = leave_one_out(simulate(96, 300, seed=3, mean_length=6).log)
    config = default_config()
    config.diffusion.hidden, config.diffusion.embedding_size = (6,), 4
    config.diffusion.steps, config.diffusion.batch_size = 3, 8
    config.diffusion.update(fields)
    rules = get_protocol(protocol)
    test, validation = (
        draw_candidates(rules, split, 0, heldout=heldout, negatives=20)
        for heldout in ("test", "valid")
    )
    task, scorers = stage.build(
        seeded(config, "diffusion"),
        split,
        np.ones(split.train.num_users, bool),
        protocol=rules,
        candidates=test,
        validation=validation,
    )
    return split, task, scorers


def task_of(**fields: float) -> DiffusionTask:
    """Twelve steps an epoch."""
    return built(**fields)[1]


@pytest.fixture(scope="module")
def task() -> DiffusionTask:
    """In dispatches of 5, 5 and 2 steps."""
    return task_of()


def test_interrupted_anywhere(task) -> None:
    assert task.steps == 12
    told: list[int] = []
    unbroken, values = task.run_epoch(task.initial(), 1, told.append)
    assert told == [5, 5, 2]
    state, losses = task.initial(), np.zeros(0, np.float32)
    for done in (5, 10):
        with pytest.raises(Unfinished) as caught:
            task.run_epoch(state, 1, lambda _: True, tuple(losses.tolist()))
        state, losses = caught.value.state, caught.value.losses
        assert len(losses) == done
    # After its last dispatch an epoch is finished, whatever is asked.
    state, resumed = task.run_epoch(state, 1, lambda _: True, tuple(losses.tolist()))
    assert resumed == values
    jax.tree.map(np.testing.assert_array_equal, state, unbroken)


@pytest.mark.parametrize(
    ("train", "fields"),
    [
        (optimise.train_steps, {}),
        (optimise.train_steps_on_windows, {"noise_fraction": 0.25}),
        (optimise.train_steps_by_rows, {"noise_fraction": 0.25, "error_fraction": 0.25}),
    ],
)
def test_a_second_seed_compiles_no_training_anew(train, fields) -> None:
    first = task_of(**fields)
    second = dataclasses.replace(first, config=ConfigDict({**first.config, "seed": 1}))
    _, values = first.run_epoch(first.initial(), 1, lambda _: False)
    programs = train._cache_size()
    _, others = second.run_epoch(first.initial(), 1, lambda _: False)
    assert train._cache_size() == programs > 0
    assert others["loss"] != values["loss"]


def test_batches_of_all_seeds_have_one_shape(monkeypatch) -> None:
    """Where the numbers of tokens are not rounded, so that those of other draws differ."""
    monkeypatch.setattr("pdrec_jax.diffusion.vectors._TOKEN_STEP", 1)
    tasks = [task_of(noise_fraction=0.25)]
    tasks += [
        dataclasses.replace(tasks[0], config=ConfigDict({**tasks[0].config, "seed": seed}))
        for seed in (1, 2)
    ]
    assert len({tuple(task._tokens(task._draw(1))) for task in tasks}) == 3
    assert len({tuple(task._usual_tokens) for task in tasks}) == 1


def test_row_by_row_an_epoch_has_few_pieces(monkeypatch) -> None:
    """Each ends with every row up to date, so where they end makes no difference but rounding."""
    whole = task_of(noise_fraction=0.25, error_fraction=0.25)
    told: list[int] = []
    unbroken, values = whole.run_epoch(whole.initial(), 1, told.append)
    assert told == [12]
    monkeypatch.setattr(task_module, "_ROW_STEPS_A_DISPATCH", 5)
    state, found = whole.run_epoch(whole.initial(), 1, told.append)
    assert told == [12, 4, 4, 4]
    assert found["loss"] == pytest.approx(values["loss"], rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state, unbroken
    )


@pytest.mark.parametrize("name", ["noise_fraction", "error_fraction"])
def test_windows_of_less_than_a_slot(name: str) -> None:
    config = seeded(default_config(), "diffusion")
    config[name] = 1 / 49  # times 49 a float short of 1
    stage.model_of_slots(config, 49)
    config[name] = 1e-10
    with pytest.raises(
        UserError, match=rf"^config\.diffusion\.{name}: .* 1 / 20 of all, got 1e-10$"
    ):
        stage.model_of_slots(config, 20)


def test_noise_that_leaves_nothing_of_the_data() -> None:
    """What x_0 is cannot be told from the noise then; from x_0 itself it can be learnt."""
    config = seeded(default_config(), "diffusion")
    config.schedule, config.noise_scale, config.noise_max = "linear", 1.0, 1.0
    stage.model_of_slots(config, 20)
    config.target = "epsilon"
    expected = r"^config\.diffusion\.noise_max: .* got 1 at noise_scale 1$"
    with pytest.raises(UserError, match=expected):
        stage.model_of_slots(config, 20)


class TestBuild:
    def test_an_item_is_ranked_by_all_that_came_before_it(self) -> None:
        """The validation item by what is trained on, the test item by the validation item too."""
        split, task, scorers = built()
        valid, test, train = scorers["validation"], scorers["test"], split.train
        assert task.scorer is valid
        for user in range(train.num_users):
            own = set(train.items[train.offsets[user] : train.offsets[user + 1]].tolist())
            both = own | {int(split.valid_items[user])}
            for vectors, expected in (
                (task.vectors, own),
                (valid.vectors, own),
                (test.vectors, both),
            ):
                begin, end = vectors.offsets[user : user + 2]
                assert set(vectors.slots[begin:end].tolist()) == expected
        np.testing.assert_array_equal(valid.candidates[:, 0], split.valid_items)
        np.testing.assert_array_equal(test.candidates[:, 0], split.test_items)
        # The full ranking leaves out what is in the input.
        assert [len(scorer.seen[1]) for scorer in (valid, test)] == [
            train.num_events,
            train.num_events + train.num_users,
        ]

    def test_reference_is_chosen_by_the_test(self) -> None:
        _, task, scorers = built("reference")
        assert task.scorer is scorers["test"]
        assert scorers["validation"] is None

    def test_batches(self) -> None:
        """Of all users, the rest included; each comes as often as the config says."""
        task = task_of(batch_size=7, batch_repeat=3)
        assert task.steps == 14
        drawn, later = task._draw(1), task._draw(2)
        assert drawn.shape == (14, 7)
        np.testing.assert_array_equal(drawn, np.repeat(drawn[::3], 3, axis=0)[:14])
        assert (drawn[::3] != later[::3]).any(axis=1).all()
        np.testing.assert_array_equal(drawn, task._draw(1))

    def test_when_it_stops(self) -> None:
        config = seeded(default_config(), "diffusion")
        config.epochs, config.patience, config.evaluate_every = 7, 3, 2
        expected = LoopSettings(7, 3, evaluate_every=2, save_seconds=60.0, save_behind=True)
        assert stage.loop_settings(config, 60.0, save_behind=True) == expected


@pytest.mark.parametrize(
    ("weighting", "heldin", "shares"),
    [
        ("time", False, [0, 0.1, 1]),
        ("time", True, [0, 0.05, 0.5, 1]),
        ("position", False, [0, 1 / 2, 1]),
        ("position", True, [0, 1 / 3, 2 / 3, 1]),
    ],
)
def test_weights_from_the_first_event_to_the_last(weighting, heldin, shares) -> None:
    """Of five events a user the last two are held out, and one of them held in again."""
    log = from_events(np.repeat([1, 2], 5), np.tile(range(5), 2), np.tile([0, 1, 10, 20, 40], 2))
    config = seeded(default_config(), "diffusion")
    config.weighting, config.w_min, config.w_max = weighting, 0.2, 1.0
    vectors = stage.vectors_of(config, leave_one_out(log), 6, heldin=heldin)
    assert vectors.slots.tolist() == 2 * list(range(1, len(shares) + 1))
    np.testing.assert_allclose(vectors.weights, np.tile(0.2 + 0.8 * np.array(shares), 2), rtol=1e-6)


def test_every_row_decays_at_the_rates_of_its_epochs() -> None:
    """At a learning rate too small to move anything decay alone is seen, of rows that wait too."""
    rate = 1e-9
    task = task_of(
        noise_fraction=0.25,
        error_fraction=0.25,
        learning_rate=rate,
        learning_rate_decay=0.5,
        weight_decay=0.05 / rate,
    )
    state = task.initial()
    start = np.asarray(state["params"]["item_kernel"])
    for epoch in (1, 2):
        state, values = task.run_epoch(state, epoch, lambda _: None)
        assert values["learning_rate"] == pytest.approx(rate / epoch)
    expected = start * 0.95**task.steps * 0.975**task.steps
    np.testing.assert_allclose(state["params"]["item_kernel"], expected, rtol=1e-3, atol=1e-6)
