"""Several seeds in one program, against each seed alone."""

import dataclasses
import io
import math
import types

import jax
import numpy as np
import pytest

from pdrec_jax.checkpoints import Store
from pdrec_jax.encoders import together
from pdrec_jax.encoders.stage import build, loop_settings
from pdrec_jax.encoders.task import EncoderTask
from pdrec_jax.evaluation.protocol import STRICT
from pdrec_jax.metric_log import MetricLog
from pdrec_jax.training import Diverged, Run, fit
from pdrec_jax.training_together import fit_together

EVERYTHING = "hbr+nns+dpa"


# Optax's Adam mixes a float and an integer count.
pytestmark = pytest.mark.loose_jax("dtypes")


def shuffled(preferences, seed: int):
    """Preferences of another diffusion model."""
    rng = np.random.default_rng(seed)
    return dataclasses.replace(
        preferences,
        candidates=rng.permuted(preferences.candidates, axis=1),
        negatives=rng.permuted(preferences.negatives, axis=1),
        observed=rng.permutation(preferences.observed),
    )


@pytest.fixture
def tasks(config, world):
    def make(variant: str, seeds=(0, 1, 2), **fields) -> list[EncoderTask]:
        made = []
        for seed in seeds:
            settings = config(
                **{
                    "seed": seed,
                    "encoder__batch_size": 16,
                    "encoder__blocks": 1,
                    "encoder__epochs": 6,
                    "encoder__dropout": 0.3,
                    "encoder__learning_rate": 0.01,
                    "encoder__first_evaluation": 1,
                    "encoder__min_epochs": 0,
                    "encoder__patience": 1,
                    "encoder__block": 32,
                    "dpa__coarse": 8,
                    "dpa__fine": 2,
                    "nns__kept": 32,
                    **fields,
                }
            )
            everyone = np.ones(world.split.train.num_users, bool)
            task, _ = build(
                settings,
                variant,
                world.split,
                shuffled(world.preferences, seed),
                drawn=everyone,
                ranked=everyone,
                protocol=STRICT,
                candidates=world.candidates,
                validation=world.validation,
                name="x",
            )
            made.append(task)
        return made

    return make


def assert_close(found, expected) -> None:
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # Batched products round otherwise; Adam divides what is left by its own size.
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(("epoch", "refresh"), [(1, 0), (2, 1)])
def test_an_epoch(tasks, monkeypatch, epoch, refresh):
    made, together_sizes = tasks(EVERYTHING, nns__refresh_epochs=refresh), []
    original = together._train_epochs

    def counted(states, *rest):
        together_sizes.append(len(states))
        return original(states, *rest)

    monkeypatch.setattr(together, "_train_epochs", counted)
    alone = [task.run_epoch(task.initial(), epoch, lambda _: None) for task in made]
    trained = together.run_epochs(made, [task.initial() for task in made], epoch)
    shapes = [task.layout(epoch).event[0].shape for task in made]
    assert together_sizes == [size for s in dict.fromkeys(shapes) if (size := shapes.count(s)) > 1]
    assert max(together_sizes) >= 2
    losses = [values["loss"] for _, values in trained]
    assert losses == pytest.approx([values["loss"] for _, values in alone], rel=1e-6)
    assert len(set(losses)) == 3
    for (state, _), (expected, _) in zip(trained, alone, strict=True):
        assert_close(state["params"], expected["params"])


def test_the_host_packs_the_next_epoch_while_the_device_works(tasks, monkeypatch):
    made, order = tasks("base"), []
    pack = EncoderTask._pack
    monkeypatch.setattr(EncoderTask, "_pack", lambda *given: order.append("pack") or pack(*given))

    states = [task.initial() for task in made]
    for epoch in (1, 2):
        order.append(epoch)
        states = [state for state, _ in together.run_epochs(made, states, epoch)]
    # Each epoch of each task is packed once, the second and third ahead.
    assert order == [1, *["pack"] * 6, 2, *["pack"] * 3]


def test_a_layout_of_another_shape_goes_alone(tasks, monkeypatch):
    made = tasks("base")
    layout = EncoderTask.layout

    def wider(task: EncoderTask, epoch: int):
        batch = layout(task, epoch)
        if task.config.seed != 1:
            return batch
        event = tuple(np.pad(e, ((0, 0), (0, 1), (0, 0))) for e in batch.event)
        owner = tuple(
            np.pad(s, ((0, 0), (0, 1), (0, 0)), constant_values=16) for s in batch.segment
        )
        return dataclasses.replace(batch, event=event, segment=owner)

    monkeypatch.setattr(EncoderTask, "layout", wider)
    alone = [task.run_epoch(task.initial(), 1, lambda _: None) for task in made]
    trained = together.run_epochs(made, [task.initial() for task in made], 1)
    for (state, values), (expected, other) in zip(trained, alone, strict=True):
        assert values["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert_close(state["params"], expected["params"])


def test_row_by_row_goes_alone(tasks, monkeypatch):
    made = tasks("base", encoder__row_adam_above=1)
    monkeypatch.setattr(together, "_train_epochs", None)
    values = {"loss": 0.0, "learning_rate": 0.0}
    monkeypatch.setattr(EncoderTask, "run_epoch", lambda task, *_: (task.config.seed, values))
    states = [task.initial() for task in made]
    assert together.run_epochs(made, states, 1) == [(seed, values) for seed in range(3)]


def test_seeds_that_fit(tasks, monkeypatch):
    (task,) = tasks(EVERYTHING, seeds=(0,))
    sizes = [
        sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (task.initial(), task.data)
    ]
    stats = {"bytes_limit": 4 * (6 * sizes[0] + 3 * sizes[1]) + 999, "bytes_in_use": 1000}
    device = types.SimpleNamespace(memory_stats=lambda: stats)
    monkeypatch.setattr(together.jax, "local_devices", lambda: [device])
    assert together.seeds_that_fit(task.abstract(), task.data) == 3
    stats["bytes_in_use"] -= 1
    assert together.seeds_that_fit(task.abstract(), task.data) == 4
    stats["bytes_in_use"] = stats["bytes_limit"]
    assert together.seeds_that_fit(task.abstract(), task.data) == 1


class TestToTheEnd:
    @pytest.fixture
    def settings(self, config):
        return loop_settings(
            config(encoder__epochs=8, encoder__patience=2, encoder__first_evaluation=1,
                   encoder__min_epochs=0).encoder,
            300.0,
        )  # fmt: skip

    @pytest.mark.parametrize(("vmapped", "workers"), [(True, 1), (False, 2)])
    def test_each_seed_ends_where_it_ends_alone(self, tasks, settings, tmp_path, vmapped, workers):
        made = tasks("base")
        logs = [log(None) for _ in made]
        stores = [Store(tmp_path / str(i) / "store") for i in range(3)]
        runs = [Run(*parts) for parts in zip(made, [settings] * 3, stores, logs, strict=True)]
        fit_together(runs, "x", together.run_epochs if vmapped else None, workers)
        epochs = []
        for index, (task, run) in enumerate(zip(made, runs, strict=True)):
            alone = fit(task, settings, Store(tmp_path / f"alone{index}"), log(None))
            course, expected = run.fitted.course, alone.course
            assert (course.epoch, course.best_epoch) == (expected.epoch, expected.best_epoch)
            assert course.best == pytest.approx(expected.best, abs=1e-5)
            assert len(logs[index].read("x")) == course.epoch
            ours, theirs = (task.scorer.sampled(f.params).metrics() for f in (run.fitted, alone))
            assert ours == pytest.approx(theirs, abs=1e-5)
            # As a single run leaves it, which would now go on to rank.
            assert stores[index].step("best") is not None
            assert stores[index].step("state") is None
            again = fit(task, settings, stores[index], logs[index])
            assert again.course == course
            epochs.append(course.epoch)
        assert len(set(epochs)) > 1  # a seed stopped while another went on

    @pytest.mark.parametrize(("vmapped", "workers"), [(True, 1), (False, 2)])
    def test_one_that_diverges_leaves_the_others(
        self, tasks, settings, tmp_path, vmapped, workers, capsys, monkeypatch
    ):
        made = tasks("base")
        settings = dataclasses.replace(settings, epochs=3, save_seconds=0.0)
        stores = [Store(tmp_path / str(i)) for i in range(3)]
        measure = Run.measure

        def broken(run: Run, state, values) -> None:
            if (run.store, run.course.epoch) == (stores[1], 1):
                values["loss"] = math.nan
            measure(run, state, values)

        monkeypatch.setattr(Run, "measure", broken)
        runs = [Run(made[i], settings, stores[i], log(None)) for i in range(3)]
        with pytest.raises(Diverged, match=r"^x: the loss is nan in epoch 2"):
            fit_together(runs, "x", together.run_epochs if vmapped else None, workers)
        warning = f"warning: {stores[1].directory}: x: the loss is nan in epoch 2 "
        assert capsys.readouterr().err.startswith(warning)
        assert [store.step("best") is None for store in stores] == [False, True, False]
        assert stores[1].step("state") == made[0].steps  # the last good one
        for index in (0, 2):
            expected = fit(made[index], settings, Store(tmp_path / f"a{index}"), log(None)).course
            assert runs[index].fitted.course.best_epoch == expected.best_epoch
            assert runs[index].fitted.course.best == pytest.approx(expected.best, abs=1e-5)

    def test_killed_between_two_saves(self, tasks, settings, tmp_path):
        made = tasks("base")
        settings = dataclasses.replace(settings, epochs=3, save_seconds=0.0)
        expected = [
            fit(t, settings, Store(tmp_path / f"a{t.config.seed}"), log(None)) for t in made
        ]
        stores = [Store(tmp_path / str(t.config.seed)) for t in made]

        def runs() -> list[Run]:
            logs = [log(None) for _ in made]
            return [Run(*p) for p in zip(made, [settings] * 3, stores, logs, strict=True)]

        saves = 0
        save = Store.save

        def dying(store: Store, slot: str, *rest, **named) -> None:
            nonlocal saves
            saves += 1
            if saves == 5:  # the second seed's second epoch
                raise KeyboardInterrupt
            save(store, slot, *rest, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Store, "save", dying)
            with pytest.raises(KeyboardInterrupt):
                fit_together(runs(), "x", together.run_epochs)
        assert [store.step("state") for store in stores] == [s * made[0].steps for s in (2, 1, 1)]
        resumed = runs()
        fit_together(resumed, "x", together.run_epochs)
        for run, alone in zip(resumed, expected, strict=True):
            assert run.fitted.course.best_epoch == alone.course.best_epoch
            assert run.fitted.course.best == pytest.approx(alone.course.best, abs=1e-5)


def log(workdir) -> MetricLog:
    return MetricLog(workdir, progress=False, stream=io.StringIO())
