"""The diffusion stage: its models, and an epoch that is interrupted between two dispatches."""

import jax
import numpy as np
import pytest

from pdrec_jax.data.simulator import simulate
from pdrec_jax.data.splits import leave_one_out
from pdrec_jax.diffusion import stage
from pdrec_jax.diffusion import task as task_module
from pdrec_jax.diffusion.task import DiffusionTask
from pdrec_jax.errors import UserError
from pdrec_jax.evaluation.protocol import draw_candidates, get_protocol
from pdrec_jax.settings import default_config, seeded
from pdrec_jax.training import Unfinished

pytestmark = pytest.mark.loose_jax("dtypes")


def task_of(**fields: float) -> DiffusionTask:
    """Twelve steps an epoch."""
    split = leave_one_out(simulate(96, 300, seed=3, mean_length=6).log)
    config = default_config()
    config.diffusion.hidden, config.diffusion.embedding_size = (6,), 4
    config.diffusion.steps, config.diffusion.batch_size = 3, 8
    config.diffusion.update(fields)
    protocol = get_protocol("strict")
    users = np.ones(split.train.num_users, bool)
    candidates = draw_candidates(protocol, split, 0, heldout="test", negatives=20)
    task, _ = stage.build(
        seeded(config, "diffusion"),
        split,
        users,
        protocol=protocol,
        candidates=candidates,
        validation=candidates,
    )
    return task


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
