"""Stores: what was saved comes back, and what does not fit is refused in one line."""

import contextlib
import errno
import os
import re
import resource
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pdrec_jax import checkpoints, manifest
from pdrec_jax.checkpoints import NoCheckpoint, Store, is_disk_full
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

    def test_an_array_larger_than_what_is_copied_at_a_time(self, store, monkeypatch):
        """Orbax refuses one that reaches its limit, which so has to follow the largest."""
        monkeypatch.setattr(checkpoints, "_AT_A_TIME", 1)
        store.save("state", 1, tree(), {})
        assert_same(store.restore("state", tree(0.0))[0], tree())

    def test_from_shapes_alone(self, saved):
        found, _ = saved.restore("state", jax.eval_shape(tree))
        assert_same(found, tree())

    def test_on_the_host_alone(self, saved):
        before = {id(array) for array in jax.live_arrays()}
        found, _ = saved.restore("state", jax.eval_shape(tree), on_host=True)
        made = [array for array in jax.live_arrays() if id(array) not in before]
        assert {type(leaf) for leaf in jax.tree.leaves(found)} == {np.ndarray}
        assert not made
        assert_same(found, tree())

    def test_the_newest_two_saves_stay(self, store):
        for step in (1, 2, 3):
            store.save("state", step, tree(float(step)), {})
        assert store.step("state") == 3
        assert_same(store.restore("state", tree())[0], tree(3.0))
        assert {path.name for path in (store.directory / "state").iterdir()} == {"2", "3"}
        assert store.step("best") is None
        store.delete("state")
        assert store.step("state") is None
        store.delete("state")

    def test_a_save_that_was_cut_short_is_not_seen(self, store):
        store.save("state", 1, tree(), {})
        (store.directory / "state" / "2.orbax-checkpoint-tmp-0").mkdir()
        (store.directory / "state" / ".saving.tmp" / "2").mkdir(parents=True)
        assert store.step("state") == 1
        store.save("state", 3, tree(), {})
        assert not (store.directory / "state" / ".saving.tmp").exists()

    def test_a_save_from_before_takes_the_place_of_what_came_after(self, store):
        """Who resumes from step 1 gives up the course that step 5 belongs to."""
        for step, scale in ((1, 1.0), (5, 5.0), (2, 2.0)):
            store.save("state", step, tree(scale), {"step": step})
        assert store.step("state") == 2
        store.save("state", 2, tree(3.0), {"step": 2})
        assert_same(store.restore("state", tree())[0], tree(3.0))

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


@pytest.mark.parametrize("behind", [False, True], ids=["", "behind"])
class TestFullDisk:
    def test_save(self, monkeypatch, store, behind):
        store.save("state", 1, tree(), {"epoch": 1})

        def full(*args, **kwargs):
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError as error:
                raise RuntimeError("a writer thread failed") from error

        with monkeypatch.context() as patch:
            patch.setattr(ocp.CheckpointManager, "save", full)
            with pytest.raises(UserError, match="disk full while saving step 2") as caught:
                store.save("state", 2, tree(2.0), {"epoch": 2}, behind=behind)
        assert "\n" not in str(caught.value)
        assert str(store.directory / "state") in str(caught.value)
        found, meta = store.restore("state", tree())
        assert_same(found, tree())
        assert meta == {"epoch": 1}

    def test_at_every_call_that_could_meet_it(self, monkeypatch, store, behind):
        """Whichever call finds the disk full, one line says so and the former save is whole."""
        store.save("state", 1, tree(), {"epoch": 1})
        full = OSError(errno.ENOSPC, "No space left on device")
        calls = {"fsync": os.fsync, "replace": os.replace}
        for name, function in calls.items():
            for limit in range(1, 30):
                count = 0

                def limited(*given, function=function, limit=limit, **named):
                    nonlocal count
                    count += 1
                    if count == limit:
                        raise full
                    return function(*given, **named)

                with monkeypatch.context() as patch, contextlib.suppress(UserError):
                    patch.setattr(os, name, limited)
                    store.save("state", 2, tree(2.0), {"epoch": 2}, behind=behind)
                    store.finish()
                left = {path.name for path in (store.directory / "state").iterdir()}
                assert left <= {"1", "2"}, (name, limit)
                found, meta = store.restore("state", tree())
                assert_same(found, tree(float(meta["epoch"])))
                if count < limit:
                    break
                shutil.rmtree(store.directory / "state" / "2", ignore_errors=True)
            assert count < limit, name

    def test_a_limit_of_the_process(self, store, behind):
        """The system refuses a byte beyond the limit, to the C++ of Orbax as well."""
        store.save("state", 1, tree(), {"epoch": 1})
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        large = {"x": np.random.default_rng(0).normal(size=100_000)}
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            with (
                pytest.raises(UserError, match="disk full while saving step 2"),
                store.finishing(),
            ):
                store.save("state", 2, large, {"epoch": 2}, behind=behind)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert [path.name for path in (store.directory / "state").iterdir()] == ["1"]
        assert_same(store.restore("state", tree())[0], tree())

    def test_other_errors_pass(self, monkeypatch, store, behind):
        def broken(*args, **kwargs):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(ocp.CheckpointManager, "save", broken)
        with pytest.raises(PermissionError):
            store.save("state", 1, tree(), {}, behind=behind)


class TestIsDiskFull:
    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (OSError(errno.ENOSPC, "x"), True),
            (OSError(errno.EDQUOT, "x"), True),
            (OSError(errno.EFBIG, "x"), True),
            (ValueError("INTERNAL: Error writing: File too large"), True),
            (ValueError("RESOURCE_EXHAUSTED: Error writing local file"), True),
            (ValueError("RESOURCE_EXHAUSTED: out of device memory"), False),
            (OSError(errno.EIO, "x"), False),
            (None, False),
        ],
    )
    def test_is_disk_full(self, error, expected):
        assert is_disk_full(error) is expected


class TestBehind:
    """Saves in the background."""

    @pytest.fixture
    def held(self, monkeypatch) -> threading.Event:
        """Keeps saves from being sealed until it is set."""
        may, seal = threading.Event(), manifest.seal

        def held(place):
            assert may.wait(60)
            seal(place)

        monkeypatch.setattr(manifest, "seal", held)
        return may

    def test_has_its_name_when_it_is_whole(self, store, held):
        held.set()
        store.save("state", 1, tree(), {"epoch": 1})
        held.clear()
        store.save("state", 2, tree(2.0), {"epoch": 2}, behind=True)
        # What a run finds that is started after a kill now.
        other = Store(store.directory)
        assert other.step("state") == 1
        assert_same(other.restore("state", tree())[0], tree())
        held.set()
        store.finish()
        assert other.step("state") == 2
        assert_same(other.restore("state", tree())[0], tree(2.0))
        assert {path.name for path in (store.directory / "state").iterdir()} == {"1", "2"}

    @pytest.mark.parametrize(
        "then",
        [
            lambda store: store.step("state"),
            lambda store: store.restore("state", tree())[1]["epoch"],
            lambda store: store.restore_meta("state")["epoch"],
            lambda store: store.fault("state") or store.step("state"),
            lambda store: store.save("other", 1, tree(), {}) or store.step("state"),
            lambda store: (
                store.save("state", 3, tree(), {}, behind=True) or store.step("state") - 1
            ),
        ],
    )
    def test_all_that_reads_or_changes_waits_for_it(self, store, held, then):
        store.save("state", 2, tree(), {"epoch": 2}, behind=True)
        threading.Timer(0.2, held.set).start()
        assert then(store) == 2

    def test_deleting_waits_for_it(self, store, held):
        store.save("state", 2, tree(), {"epoch": 2}, behind=True)
        threading.Timer(0.2, held.set).start()
        store.delete("state")
        assert list(store.directory.iterdir()) == []

    def test_arrays_that_are_donated_at_once(self, store):
        """On a CPU an array's memory may serve as its copy on the host."""
        step = jax.jit(lambda state: jax.tree.map(lambda x: x * 2 + 1, state), donate_argnums=0)
        state = {"w": jnp.zeros((1000, 1000)), "b": jnp.arange(7.0)}
        for number in range(1, 9):
            expected = jax.tree.map(np.array, state)
            store.save("state", number, state, {}, behind=True)
            for _ in range(5):
                state = step(state)
            jax.block_until_ready(state)
            found, _ = store.restore("state", state)
            assert_same(found, expected)

    def test_an_error_is_told_at_the_next_call(self, store, monkeypatch):
        store.save("state", 1, tree(), {"epoch": 1})

        def full(place):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(manifest, "seal", full)
            store.save("state", 2, tree(2.0), {"epoch": 2}, behind=True)
            with pytest.raises(UserError, match="disk full while saving step 2"):
                store.save("state", 3, tree(3.0), {"epoch": 3}, behind=True)
        assert store.step("state") == 1
        store.save("state", 3, tree(3.0), {"epoch": 3}, behind=True)
        assert_same(store.restore("state", tree())[0], tree(3.0))

    @pytest.mark.parametrize("failed", [False, True])
    def test_finishing(self, store, held, failed):
        """The save is there at the end of the block, and another error passes."""
        threading.Timer(0.2, held.set).start()
        with pytest.raises(KeyError) if failed else contextlib.nullcontext(), store.finishing():
            store.save("state", 1, tree(), {}, behind=True)
            if failed:
                raise KeyError
        assert Store(store.directory).step("state") == 1


def files_of(store: Store, step: int) -> list[Path]:
    place = store.directory / "state" / str(step)
    return sorted(path for path in place.rglob("*") if path.is_file())


def flip(path: Path, place: int, bits: int = 0x40) -> None:
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= bits
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


DAMAGES = {
    "flipped": lambda path: flip(path, 0),
    "last": lambda path: flip(path, -1, 0x01),
    "cut": cut,
    "missing": Path.unlink,
}


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Store:
    """A store with two saves; who damages one mends it."""
    store = Store(tmp_path_factory.mktemp("two"))
    store.save("state", 1, tree(1.0), {"epoch": 1})
    store.save("state", 2, tree(2.0), {"epoch": 2})
    return store


class TestDamage:
    """Flipped bytes, cut and missing files: found, told in one line, survived where possible."""

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_in_any_file_of_the_newest_save(self, two, capsys, damage):
        """The save before it is used."""
        for path in files_of(two, 2):
            whole = path.read_bytes()
            if not whole:
                continue
            DAMAGES[damage](path)
            found, meta = two.restore("state", tree())
            assert two.restore_meta("state") == meta == {"epoch": 1}, path
            assert_same(found, tree(1.0))
            warning = capsys.readouterr().err
            assert warning.count("\n") == 1
            assert warning.startswith(f"warning: {two.directory / 'state'}: the checkpoint of step")
            assert warning.endswith("; that of step 1 is used\n")
            assert path.name in warning
            path.write_bytes(whole)
        assert_same(two.restore("state", tree())[0], tree(2.0))
        assert capsys.readouterr().err == ""

    def test_any_flipped_bit_of_a_manifest_or_an_array(self, two):
        """None of them is taken for whole with other content."""
        random = np.random.default_rng(0)
        for path in files_of(two, 2):
            whole = path.read_bytes()
            for place in random.integers(len(whole), size=12) if whole else ():
                flip(path, int(place), 1 << int(random.integers(8)))
                fault = manifest.fault(two.directory / "state" / "2")
                assert fault is not None, (path, place)
                assert "\n" not in fault
                path.write_bytes(whole)

    @pytest.mark.parametrize("size", ["1e34567", "NaN", '"many"', "null", "[]", "9" * 5000])
    def test_a_size_that_is_none(self, tmp_path, size):
        (tmp_path / manifest.NAME).write_text(f'{{"sha256": {{"a": [{size}, "0"]}}}}')
        assert manifest.fault(tmp_path) == "manifest.json is damaged"

    def test_of_all_saves(self, store):
        for step in (1, 2):
            store.save("state", step, tree(), {})
            cut(files_of(store, step)[-1])
        for attempt in (
            lambda: store.restore("state", tree()),
            lambda: store.restore_meta("state"),
        ):
            with pytest.raises(NoCheckpoint) as caught:
                attempt()
            assert str(caught.value).startswith(f"{store.directory / 'state'}: the checkpoint of ")
            assert re.search(
                r"step 2 is broken \(.* bytes.*\), so are 1 older ones$", str(caught.value)
            )

    @pytest.mark.parametrize("behind", [False, True])
    @pytest.mark.parametrize("ends", [False, True])
    def test_a_broken_save_is_none_of_the_two_that_stay(self, store, behind, ends):
        """Who goes on from the one before it still has that one, should the next break as well."""
        for step in (1, 3):
            store.save("state", step, tree(), {"epoch": step})
        cut(files_of(store, 3)[-1])
        if ends:
            store = Store(store.directory)
        assert store.restore("state", tree())[1] == {"epoch": 1}
        store.save("state", 4, tree(), {"epoch": 4}, behind=behind)
        store.finish()
        assert {path.name for path in (store.directory / "state").iterdir()} == {"1", "4"}
        cut(files_of(store, 4)[-1])
        assert store.restore("state", tree())[1] == {"epoch": 1}
        # The number of a broken save may come again, and is then that of a whole one.
        for step in (4, 5):
            store.save("state", step, tree(), {"epoch": step}, behind=behind)
        store.finish()
        assert {path.name for path in (store.directory / "state").iterdir()} == {"4", "5"}

    def test_a_save_of_an_earlier_version_has_no_manifest(self, store, capsys):
        store.save("state", 1, tree(), {"epoch": 1})
        (store.directory / "state" / "1" / "manifest.json").unlink()
        found, _ = store.restore("state", tree())
        assert_same(found, tree())
        assert capsys.readouterr().err.endswith("step 1 has no manifest, it is not verified\n")
        (store.directory / "state" / "1" / "tree" / "_METADATA").write_text("{")
        with pytest.raises(NoCheckpoint, match=r"step 1 cannot be read \(") as caught:
            store.restore("state", tree())
        assert "\n" not in str(caught.value)


def test_directory_may_be_relative(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Store(Path("here")).save("best", 0, {"x": jnp.ones(2)}, {})
    assert (tmp_path / "here" / "best" / "0").is_dir()
