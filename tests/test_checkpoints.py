"""Stores: what was saved comes back, and what does not fit is refused in one line."""

import errno
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pdrec_jax.checkpoints import Store, is_disk_full
from pdrec_jax.errors import UserError


def tree(scale: float = 1.0) -> dict:
    return {
        "params": {
            "kernel": jnp.arange(6.0).reshape(2, 3) * scale,
            "middle": {0: {"bias": jnp.ones(3) * scale}, 1: {"bias": jnp.zeros(2)}},
        },
        "step": jnp.asarray(7, jnp.int32),
        "mask": np.array([True, False]),
    }


def assert_same(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "stage")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Store:
    """A store with a slot that no test changes."""
    store = Store(tmp_path_factory.mktemp("saved"))
    store.save("state", 3, tree(), {"epoch": 3, "best": 0.25})
    return store


class TestRoundTrip:
    def test_tree_and_meta(self, saved):
        found, meta = saved.restore("state", tree(0.0))
        assert_same(found, tree())
        assert meta == {"epoch": 3, "best": 0.25}
        assert saved.restore_meta("state") == meta
        assert saved.step("state") == 3

    def test_from_shapes_alone(self, saved):
        found, _ = saved.restore("state", jax.eval_shape(tree))
        assert_same(found, tree())

    def test_the_newest_save_stays(self, store):
        store.save("state", 1, tree(1.0), {})
        store.save("state", 2, tree(2.0), {})
        assert store.step("state") == 2
        assert_same(store.restore("state", tree())[0], tree(2.0))
        kept = {path.name for path in (store.directory / "state").iterdir() if path.is_dir()}
        assert kept == {"2"}
        assert store.step("best") is None
        store.delete("state")
        assert store.step("state") is None
        store.delete("state")

    def test_a_save_that_was_cut_short_is_not_seen(self, store):
        store.save("state", 1, tree(), {})
        (store.directory / "state" / "2.orbax-checkpoint-tmp-0").mkdir()
        assert store.step("state") == 1

    def test_a_slot_that_was_never_saved(self, store):
        store.directory.joinpath("state").mkdir(parents=True)
        assert store.step("state") is None
        for attempt in (lambda: store.restore("state", tree()), lambda: store.restore_meta("no")):
            with pytest.raises(UserError, match=r": no checkpoint here$"):
                attempt()


class TestAnotherModel:
    def complaint(self, store: Store, like) -> str:
        with pytest.raises(UserError) as caught:
            store.restore("state", like)
        message = str(caught.value)
        assert message.startswith(f"{store.directory / 'state'}: checkpoint of another model: ")
        assert "\n" not in message
        return message.split("model: ")[1]

    def test_other_shape(self, saved):
        like = tree()
        like["params"]["kernel"] = jnp.zeros((2, 4))
        assert self.complaint(saved, like) == (
            "params.kernel is (2, 3) float32, expected (2, 4) float32"
        )

    def test_other_type(self, saved):
        like = tree()
        like["step"] = jnp.asarray(7.0)
        assert self.complaint(saved, like) == "step is () int32, expected () float32"

    def test_leaf_that_was_not_saved(self, saved):
        like = tree()
        like["params"]["bias"] = jnp.zeros(3)
        assert self.complaint(saved, like) == "params.bias is absent, expected (3,) float32"

    def test_leaf_that_is_not_expected(self, saved):
        like = tree()
        del like["params"]["middle"][1]
        assert self.complaint(saved, like) == (
            "params.middle.1.bias is (2,) float32, expected absent"
        )


class TestFullDisk:
    def test_save(self, monkeypatch, store):
        store.save("state", 1, tree(), {"epoch": 1})

        def full(*args, **kwargs):
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError as error:
                raise RuntimeError("a writer thread failed") from error

        with monkeypatch.context() as patch:
            patch.setattr(ocp.CheckpointManager, "save", full)
            with pytest.raises(UserError, match="disk full while saving step 2") as caught:
                store.save("state", 2, tree(2.0), {"epoch": 2})
        assert "\n" not in str(caught.value)
        assert str(store.directory / "state") in str(caught.value)
        found, meta = store.restore("state", tree())
        assert_same(found, tree())
        assert meta == {"epoch": 1}

    def test_other_errors_pass(self, monkeypatch, store):
        def broken(*args, **kwargs):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(ocp.CheckpointManager, "save", broken)
        with pytest.raises(PermissionError):
            store.save("state", 1, tree(), {})

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (OSError(errno.ENOSPC, "x"), True),
            (OSError(errno.EDQUOT, "x"), True),
            (ValueError("RESOURCE_EXHAUSTED: Error writing local file"), True),
            (ValueError("RESOURCE_EXHAUSTED: out of device memory"), False),
            (OSError(errno.EIO, "x"), False),
            (None, False),
        ],
    )
    def test_is_disk_full(self, error, expected):
        assert is_disk_full(error) is expected


def test_directory_may_be_relative(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Store(Path("here")).save("best", 0, {"x": jnp.ones(2)}, {})
    assert (tmp_path / "here" / "best" / "0").is_dir()
