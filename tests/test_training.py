"""The training loop on a tiny task: what it keeps, when it stops, and that it resumes exactly."""

import contextlib
import dataclasses
import functools
import io
import math
import signal
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax import interrupts
from pdrec_jax.checkpoints import Store
from pdrec_jax.errors import UserError
from pdrec_jax.metric_log import MetricLog
from pdrec_jax.training import (
    Course,
    Fitted,
    LoopSettings,
    Run,
    Unfinished,
    epoch_values,
    fit,
)
from pdrec_jax.training_together import fit_together


@functools.partial(jax.jit, donate_argnums=0)
def advance_state(state, epoch):
    key = jax.random.fold_in(jax.random.key(0), epoch)
    noise = jax.random.normal(key, (3,))
    momentum = 0.9 * state["momentum"] + noise
    return {"params": {"w": state["params"]["w"] + momentum}, "momentum": momentum}


@dataclasses.dataclass
class Walk:
    """A random walk; the metric of each epoch is given, NaN losses, kills, signals on request."""

    metrics: dict[int, float] = dataclasses.field(default_factory=dict)
    nan_at: int | None = None
    killed_in: int | None = None
    signal_in: int | None = None
    within: bool = False
    number: int = signal.SIGTERM
    name: str = "walk"
    steps: int = 4
    evaluated: list[int] = dataclasses.field(default_factory=list)
    epoch: int = 0

    def initial(self) -> dict[str, Any]:
        return {"params": {"w": jnp.arange(3.0)}, "momentum": jnp.zeros(3)}

    def abstract(self) -> dict[str, Any]:
        return jax.eval_shape(self.initial)

    def run_epoch(
        self, state: Any, epoch: int, advance: Callable[[int], Any], done: Sequence[float] = ()
    ) -> tuple:
        """Three steps, which do nothing, and one that moves."""
        if epoch == self.killed_in:
            raise KeyboardInterrupt
        self.epoch = epoch
        losses = np.array([1, 2, 3, 4], np.float32) / epoch
        if epoch == self.nan_at:
            losses[2:] = np.nan
        if epoch == self.signal_in and self.within:
            signal.raise_signal(self.number)
        if not done and advance(3):
            raise Unfinished(state, losses[:3])
        state = advance_state(state, jnp.asarray(epoch, jnp.int32))
        if epoch == self.signal_in and not self.within:
            signal.raise_signal(self.number)
        advance(1)
        return state, epoch_values(np.append(np.float32(done or losses[:3]), losses[3:]), 0.1)

    def parameters(self, state: Any) -> Any:
        return state["params"]

    def evaluate(self, params: Any) -> float:
        assert params["w"].shape == (3,)
        self.evaluated.append(self.epoch)
        return self.metrics.get(self.epoch, 0.0)


def weights_after(epochs: int) -> np.ndarray:
    state = Walk().initial()
    for epoch in range(1, epochs + 1):
        state = advance_state(state, jnp.asarray(epoch, jnp.int32))
    return np.asarray(state["params"]["w"])


@pytest.fixture
def train(tmp_path) -> Callable[..., Fitted]:
    """`train(task, place, **settings)` runs `fit` with the log and the store of a place."""

    def train(task: Walk, place: str = "run", **settings: Any) -> Fitted:
        settings = {"epochs": 6, "patience": 100, **settings}
        workdir = tmp_path / place
        workdir.mkdir(exist_ok=True)
        with MetricLog(workdir, stream=io.StringIO(), progress=False) as log:
            return fit(task, LoopSettings(**settings), Store(workdir / "store"), log)

    return train


@pytest.fixture
def lines(tmp_path) -> Callable[..., list[dict]]:
    """`lines(place)` is the metric log of a place, without wall times."""

    def lines(place: str = "run") -> list[dict]:
        with MetricLog(tmp_path / place, stream=io.StringIO(), progress=False) as log:
            return [{k: v for k, v in line.items() if k != "seconds"} for line in log.read()]

    return lines


class TestWhatIsKept:
    def test_the_best_epoch(self, train, lines):
        fitted = train(Walk({2: 0.3, 3: 0.5, 5: 0.5}))
        assert fitted.course.best_epoch == 3
        assert fitted.course.best == 0.5
        assert fitted.course.epoch == 6
        assert fitted.course.seconds > 0
        np.testing.assert_array_equal(fitted.params["w"], weights_after(3))
        assert [line["epoch"] for line in lines()] == [1, 2, 3, 4, 5, 6]
        assert lines()[2] == {
            "stage": "walk",
            "epoch": 3,
            "loss": pytest.approx(2.5 / 3),
            "learning_rate": 0.1,
            "ndcg": 0.5,
        }

    def test_a_finished_run_is_read_back(self, train, tmp_path):
        fitted = train(Walk({2: 0.3}), epochs=3)
        store = Store(tmp_path / "run" / "store")
        store.save("state", 3, {"left": jnp.zeros(2)}, {})  # by a kill before it was deleted
        again = train(Walk({1: 0.9}, killed_in=1), epochs=3)
        np.testing.assert_array_equal(again.params["w"], fitted.params["w"])
        assert again.course == fitted.course
        assert store.step("state") is None
        assert store.step("best") == 2

    def test_without_any_epoch(self, train):
        fitted = train(Walk(), epochs=0)
        assert fitted.course == Course()
        np.testing.assert_array_equal(fitted.params["w"], np.arange(3.0))


class TestWhenItStops:
    def test_patience(self, train):
        task = Walk({2: 0.3, 4: 0.2})
        fitted = train(task, epochs=50, patience=3)
        assert task.evaluated == [1, 2, 3, 4, 5]
        assert fitted.course.best_epoch == 2
        assert fitted.course.stale == 3

    def test_minimum_of_epochs(self, train):
        task = Walk({1: 0.3})
        assert train(task, epochs=50, patience=1, min_epochs=4).course.epoch == 4

    def test_a_late_gain_counts_after_patience_ran_out(self, train):
        """As in the public code: before `min_epochs` staleness stops nothing, a gain resets it."""
        fitted = train(Walk({1: 0.3, 4: 0.4}), epochs=50, patience=2, min_epochs=5)
        assert fitted.course.best_epoch == 4
        assert fitted.course.epoch == 6

    def test_which_epochs_are_evaluated(self, train, lines):
        task = Walk()
        train(task, epochs=9, first_evaluation=3, evaluate_every=4)
        assert task.evaluated == [3, 7, 9]
        assert ["ndcg" in line for line in lines()] == [e in (3, 7, 9) for e in range(1, 10)]

    def test_too_short_for_its_first_evaluation(self, train):
        task = Walk({2: 0.1})
        assert train(task, epochs=2, first_evaluation=50).course.best_epoch == 2
        assert task.evaluated == [2]


class TestResume:
    METRICS = {1: 0.2, 3: 0.5, 4: 0.1, 6: 0.6}  # noqa: RUF012

    @pytest.mark.parametrize("behind", [False, True])
    def test_equals_the_unbroken_run_bit_for_bit(self, train, lines, behind):
        unbroken = train(Walk(self.METRICS), "unbroken", epochs=8, patience=3)
        for killed_in in (3, 5, 6):
            with pytest.raises(KeyboardInterrupt):
                train(
                    Walk(self.METRICS, killed_in=killed_in),
                    "broken",
                    epochs=8,
                    patience=3,
                    save_seconds=0,
                    save_behind=behind,
                )
        task = Walk(self.METRICS)
        resumed = train(task, "broken", epochs=8, patience=3, save_seconds=0, save_behind=behind)
        assert task.evaluated == [6, 7, 8]
        np.testing.assert_array_equal(resumed.params["w"], unbroken.params["w"])
        ours, theirs = dataclasses.asdict(resumed.course), dataclasses.asdict(unbroken.course)
        assert ours.pop("seconds") != theirs.pop("seconds")
        assert ours == theirs
        assert lines("broken") == lines("unbroken")

    def test_epochs_since_the_last_save_are_repeated(self, train, lines, tmp_path):
        """Nothing was saved, so the log starts over and no epoch is in it twice."""
        with pytest.raises(KeyboardInterrupt):
            train(Walk(self.METRICS, killed_in=3), epochs=4)
        assert Store(tmp_path / "run" / "store").step("state") is None
        train(Walk(self.METRICS), epochs=4)
        assert [line["epoch"] for line in lines()] == [1, 2, 3, 4]


class TestDivergence:
    def test_message(self, train, tmp_path, lines):
        with pytest.raises(UserError) as caught:
            train(Walk(nan_at=3), save_seconds=0)
        message = str(caught.value)
        assert "\n" not in message
        start = "walk: the loss is nan in step 3 of epoch 3 at learning rate 0.1; "
        assert message.startswith(start)
        store = tmp_path / "run" / "store"
        assert f"that of epoch 2 in {store / 'state'}. A smaller learning rate" in message
        assert Store(store).step("state") == 2 * Walk.steps
        assert [line["epoch"] for line in lines()] == [1, 2]

    def test_parameters_that_no_loss_has_seen_yet(self, train, monkeypatch):
        """The last step of an epoch may leave what only the next one's loss would show."""
        broken = {"w": jnp.array([1.0, np.nan, 2.0])}
        monkeypatch.setattr(Walk, "parameters", lambda task, state: broken)
        with pytest.raises(UserError, match=r"^walk: parameters are not finite after epoch 1 at "):
            train(Walk({1: 1.0}))

    def test_no_broken_state_takes_the_place_of_a_good_one(self, train, monkeypatch, tmp_path):
        """Neither where an epoch that is not evaluated ends in one, nor where a signal cuts one."""
        task = Walk({1: 1.0, 6: 1.0})
        whole = task.run_epoch

        def run_epoch(state, epoch, advance, done=()):
            state, values = whole(state, epoch, advance, done)
            if epoch == 3:
                state = {**state, "params": {"w": jnp.full_like(state["params"]["w"], np.nan)}}
            return state, values

        monkeypatch.setattr(task, "run_epoch", run_epoch)
        options = dict(epochs=6, first_evaluation=1, evaluate_every=5, save_seconds=0)
        with pytest.raises(
            UserError, match=r"^walk: parameters are not finite after epoch 3; .*2 in"
        ):
            train(task, **options)
        store = Store(tmp_path / "run" / "store")
        assert store.step("state") == 2 * Walk.steps

        cut = Walk({1: 1.0, 6: 1.0})
        broken = np.array([1.0, np.nan], np.float32)

        def interrupted(state, epoch, advance, done=()):
            raise Unfinished(state, broken)

        monkeypatch.setattr(cut, "run_epoch", interrupted)
        with pytest.raises(UserError, match=r"^walk: a loss of epoch 3 is not finite; .*2 in"):
            train(cut, **options)
        assert store.step("state") == 2 * Walk.steps

    def test_scores_that_rank_nothing(self, train):
        with pytest.raises(UserError, match=r"^walk: scores are not finite after epoch 2 at "):
            train(Walk({1: 0.5, 2: math.nan}))

    def test_before_the_first_save(self, train):
        with pytest.raises(UserError, match=r"in step 3 of epoch 2 .*; no state was saved before"):
            train(Walk(nan_at=2))

    @pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
    def test_the_first_step_that_is_not_finite(self, wrong):
        values = epoch_values(np.array([1.0, 2.0, wrong, np.nan], np.float32), 0.5)
        assert values["step"] == 3
        assert not math.isfinite(values["loss"])
        assert epoch_values(np.ones(2, np.float32), 0.5) == {"loss": 1.0, "learning_rate": 0.5}


class TestSignals:
    METRICS = TestResume.METRICS

    @pytest.mark.parametrize("number", interrupts.SIGNALS)
    @pytest.mark.parametrize("within", [False, True])
    @pytest.mark.parametrize("behind", [False, True])
    def test_the_run_is_saved_and_goes_on_exactly(
        self, train, lines, number, within, behind, tmp_path
    ):
        settings = {"epochs": 8, "patience": 3}
        if behind:
            settings |= {"save_seconds": 0, "save_behind": True}
        unbroken = train(Walk(self.METRICS), "unbroken", **settings)
        broken = Walk(self.METRICS, signal_in=5, number=number, within=within)
        with interrupts.heard(), pytest.raises(interrupts.Interrupted) as caught:
            train(broken, "broken", **settings)
        after = "epoch 4 and 3 steps" if within else "epoch 5"
        assert caught.value.saved == f"walk is saved after {after}"
        assert interrupts.status(caught.value) == 128 + number
        kept = Store(tmp_path / "broken" / "store").step("state")
        assert kept == (4 * 4 + 3 if within else 5 * 4)
        resumed = train(Walk(self.METRICS), "broken", **settings)
        np.testing.assert_array_equal(resumed.params["w"], unbroken.params["w"])
        ours, theirs = dataclasses.asdict(resumed.course), dataclasses.asdict(unbroken.course)
        assert ours.pop("seconds") != theirs.pop("seconds")
        assert ours == theirs
        assert lines("broken") == lines("unbroken")

    def test_in_the_last_epoch(self, train, tmp_path):
        """What was to be saved is the best, and it is."""
        task = Walk(self.METRICS, signal_in=4)
        with interrupts.heard(), pytest.raises(interrupts.Interrupted) as caught:
            train(task, epochs=4)
        assert caught.value.saved == ""
        store = Store(tmp_path / "run" / "store")
        assert (store.step("best"), store.step("state")) == (3, None)


class TestDamage:
    METRICS = TestResume.METRICS

    def damaged(self, train, tmp_path, *slots: str) -> Fitted:
        with pytest.raises(KeyboardInterrupt):
            train(Walk(self.METRICS, killed_in=5), epochs=6, save_seconds=0)
        for slot in slots:
            manifest = tmp_path / "run" / "store" / slot / "manifest.json"
            manifest.write_text(manifest.read_text().replace("a", "b"))
        return train(Walk(self.METRICS), epochs=6, save_seconds=0)

    @pytest.mark.parametrize(
        ("slots", "told"),
        [
            (["state/16"], "; that of step 12 is used\n"),
            (["state/16", "state/12"], ", so are 1 older ones; walk is trained anew\n"),
        ],
    )
    def test_of_the_state(self, train, lines, tmp_path, capsys, slots, told):
        unbroken = train(Walk(self.METRICS), "unbroken", epochs=6)
        assert capsys.readouterr().err == ""
        fitted = self.damaged(train, tmp_path, *slots)
        warning = capsys.readouterr().err
        assert (warning.count("\n"), warning.endswith(told)) == (1, True), warning
        np.testing.assert_array_equal(fitted.params["w"], unbroken.params["w"])
        assert lines() == lines("unbroken")

    def test_of_the_best(self, train, lines, tmp_path, capsys):
        fitted = train(Walk(self.METRICS), epochs=6)
        (tmp_path / "run" / "store" / "best" / "6" / "manifest.json").write_text("{}")
        again = train(Walk(self.METRICS), epochs=6)
        assert capsys.readouterr().err.endswith("damaged); walk is trained anew\n")
        np.testing.assert_array_equal(again.params["w"], fitted.params["w"])
        assert [line["epoch"] for line in lines()] == [1, 2, 3, 4, 5, 6]


@pytest.fixture
def logs():
    """Closes what is entered in it."""
    with contextlib.ExitStack() as logs:
        yield logs


def test_a_signal_saves_the_seeds_that_have_not_diverged(tmp_path, monkeypatch, logs, capsys):
    """Whichever comes first; the signal is obeyed, and what went wrong was warned of."""
    runs = []
    for name in ("broken", "sound"):
        (tmp_path / name).mkdir()
        task = Walk({1: 1.0, 6: 1.0}, signal_in=3 if name == "sound" else None)
        log = logs.enter_context(MetricLog(tmp_path / name, stream=io.StringIO(), progress=False))
        settings = LoopSettings(epochs=6, patience=9, evaluate_every=5, save_seconds=1e9)
        runs.append(Run(task, settings, Store(tmp_path / name / "store"), log))
    whole = runs[0].task.run_epoch

    def run_epoch(state, epoch, advance, done=()):
        state, values = whole(state, epoch, advance, done)
        if epoch == 3:
            state = {**state, "params": {"w": jnp.full(3, jnp.nan)}}
        return state, values

    monkeypatch.setattr(runs[0].task, "run_epoch", run_epoch)
    with interrupts.heard(), pytest.raises(interrupts.Interrupted) as ended:
        fit_together(runs, "x")
    assert ended.value.saved == "walk is saved after epoch 3"
    assert "walk: parameters are not finite after epoch 3; no state" in capsys.readouterr().err
    assert Store(tmp_path / "broken" / "store").step("state") is None
    assert Store(tmp_path / "sound" / "store").step("state") == 3 * Walk.steps
