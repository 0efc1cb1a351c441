"""A mapped log is the log that was written, and all that is made of it is what memory gives."""

import json
from pathlib import Path

import numpy as np
import pytest

from pdrec_jax import manifest, processes
from pdrec_jax.data import interactions, mapped, scratch
from pdrec_jax.data.batches import extend_train
from pdrec_jax.data.catalogue import catalogue_of
from pdrec_jax.data.interactions import Interactions, from_events
from pdrec_jax.data.mapped import ColumnFile, checksum, read_mapped, write_mapped
from pdrec_jax.data.negatives import complement_table
from pdrec_jax.data.simulator import simulate
from pdrec_jax.data.splits import leave_one_out
from pdrec_jax.errors import UserError

FIELDS = ("offsets", "items", "times", "domains", "user_ids", "item_ids")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch) -> None:
    """Blocks of some users, so that a small log has many."""
    monkeypatch.setattr(interactions, "EVENTS_A_BLOCK", 37)
    monkeypatch.setattr(scratch, "EVENTS_A_BLOCK", 37)
    monkeypatch.setattr(scratch.user_blocks, "__defaults__", (37,))


@pytest.fixture
def log() -> Interactions:
    rng = np.random.default_rng(3)
    # Users of one event and more, items that recur.
    users = rng.integers(0, 40, 300)
    return from_events(users, rng.integers(1, 30, 300), rng.integers(0, 99, 300))


@pytest.fixture
def place(tmp_path, log) -> Path:
    write_mapped(tmp_path / "log", log.blocks(), log.user_ids, log.item_ids)
    return tmp_path / "log"


def same(found: Interactions, expected: Interactions) -> None:
    for name in FIELDS:
        one, other = getattr(found, name), getattr(expected, name)
        if other is None:
            assert one is None, name
        else:
            assert one.dtype == other.dtype, name
            np.testing.assert_array_equal(one, other, name)
    assert found.num_target_items == expected.num_target_items


class TestLog:
    def test_comes_back_and_is_mapped(self, place, log) -> None:
        found = read_mapped(place)
        same(found, log)
        assert found.mapped
        assert not log.mapped
        for name in ("offsets", "items", "times", "user_ids", "item_ids"):
            assert scratch.is_mapped(getattr(found, name)), name

    def test_without_times_and_with_text_ids(self, tmp_path) -> None:
        log = from_events(["b", "ab", "b", "é"], ["x", "y", "z", "x"])
        write_mapped(tmp_path / "log", log.blocks(), log.user_ids, log.item_ids)
        same(read_mapped(tmp_path / "log"), log)

    def test_blocks_are_views_of_neighbours(self, log) -> None:
        blocks = list(log.blocks())
        assert len(blocks) > 5
        assert all(np.shares_memory(block.items, log.items) for block in blocks)
        np.testing.assert_array_equal(np.concatenate([b.items for b in blocks]), log.items)
        np.testing.assert_array_equal(np.concatenate([b.user_ids for b in blocks]), log.user_ids)

    def test_popularity(self, place, log) -> None:
        expected = np.bincount(log.items, minlength=log.num_items + 1)
        np.testing.assert_array_equal(read_mapped(place).popularity, expected)

    def test_the_checksum_is_of_all_files(self, place, tmp_path, log) -> None:
        write_mapped(tmp_path / "again", log.blocks(), log.user_ids, log.item_ids)
        assert checksum(tmp_path / "again") == checksum(place)
        other = from_events([1, 1, 1], [1, 2, 3], [1, 2, 3])
        write_mapped(tmp_path / "other", other.blocks(), other.user_ids, other.item_ids)
        assert checksum(tmp_path / "other") != checksum(place)

    def test_integer_ids_may_be_demanded(self, place, tmp_path) -> None:
        with pytest.raises(UserError, match=r"user_ids\.npy: integers from 1"):
            read_mapped(place, ids="integer")  # it has a user 0
        log = from_events([1, 2], [5, 6])
        write_mapped(tmp_path / "from_1", log.blocks(), log.user_ids, log.item_ids)
        assert read_mapped(tmp_path / "from_1", ids="integer").num_users == 2


def broken(name: str, log: Interactions) -> str:
    """The complaint about a log with a fault in one field."""
    values = {field: getattr(log, field) for field in FIELDS}
    values[name] = values[name].copy()
    values[name][100] = {"items": 0, "times": np.nan, "offsets": 0}[name]
    with pytest.raises(UserError) as caught:
        Interactions(**values, num_target_items=log.num_target_items)
    return str(caught.value)


class TestChecksInBlocks:
    @pytest.mark.parametrize(("name", "what"), [("items", "ids 1.."), ("times", "finite")])
    def test_a_fault_in_any_block_is_found(self, log, name, what) -> None:
        assert what in broken(name, log)

    @pytest.mark.parametrize("event", range(1, 300))
    def test_a_time_that_falls_is_found_wherever_it_is(self, log, event) -> None:
        times = log.times.copy()
        times[event] = times[event - 1] - 1
        later = np.arange(300) > event
        times[later & (log.event_users == log.event_users[event])] = 1000
        values = {field: getattr(log, field) for field in FIELDS} | {"times": times}
        if event in log.offsets:  # of the next user: no fall
            Interactions(**values, num_target_items=log.num_target_items)
            return
        with pytest.raises(UserError, match="non-decreasing"):
            Interactions(**values, num_target_items=log.num_target_items)


class TestDerived:
    """What is made of a mapped log, in blocks, against what is made of the same log in memory."""

    def test_split(self, place, log) -> None:
        found, expected = leave_one_out(read_mapped(place)), leave_one_out(log)
        same(found.train, expected.train)
        assert found.train.mapped
        assert found.dropped_users == expected.dropped_users > 0
        assert found.mixed is None
        for name in ("valid_items", "valid_times", "test_items", "test_times"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
        for one, other in zip(extend_train(found), extend_train(expected), strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
        assert found.history is not None
        assert found.history.mapped

    def test_too_few_users(self, tmp_path) -> None:
        log = from_events([1, 1, 1, 2, 2], [1, 2, 3, 1, 2], [1, 2, 3, 4, 5])
        write_mapped(tmp_path / "log", log.blocks(), log.user_ids, log.item_ids)
        with pytest.raises(UserError) as found:
            leave_one_out(read_mapped(tmp_path / "log"))
        with pytest.raises(UserError) as expected:
            leave_one_out(log)
        assert str(found.value) == str(expected.value)

    def test_keys_of_the_negatives(self, place, log) -> None:
        one, other = leave_one_out(read_mapped(place)).train, leave_one_out(log).train
        found = complement_table(one.offsets, one.items, one.num_items, on_host=True)
        expected = complement_table(other.offsets, other.items, other.num_items, on_host=True)
        np.testing.assert_array_equal(found.offsets, expected.offsets)
        np.testing.assert_array_equal(found.keys, expected.keys)
        assert scratch.is_mapped(found.keys)
        assert (found.num_items, found.steps) == (expected.num_items, expected.steps)

    def test_catalogue(self, place, log) -> None:
        one, other = (catalogue_of(leave_one_out(x), None) for x in (read_mapped(place), log))
        np.testing.assert_array_equal(one.popularity, other.popularity)
        np.testing.assert_array_equal(one.item_ids, other.item_ids)


class TestFaults:
    """Each is one line that names the directory, and what to do."""

    def complaint(self, place: Path) -> str:
        with pytest.raises(UserError) as caught:
            read_mapped(place)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(str(place))
        return str(caught.value)

    @pytest.mark.parametrize("name", ["items.npy", "offsets.npy", "times.npy", "log.json"])
    def test_a_missing_file(self, place, name) -> None:
        (place / name).unlink()
        assert f"{name} is missing; prepare the log again" in self.complaint(place)

    def test_a_missing_seal(self, place) -> None:
        (place / "manifest.json").unlink()
        assert "no manifest.json" in self.complaint(place)

    def test_a_directory_of_something_else(self, tmp_path) -> None:
        assert "no manifest.json" in self.complaint(tmp_path)

    def test_a_file_cut_short(self, place) -> None:
        whole = (place / "items.npy").read_bytes()
        (place / "items.npy").write_bytes(whole[:-4])
        assert "items.npy has 1,324 bytes, 1,328 were saved" in self.complaint(place)

    def test_other_bytes(self, place) -> None:
        whole = bytearray((place / "times.npy").read_bytes())
        whole[-3] ^= 1
        (place / "times.npy").write_bytes(whole)
        assert "times.npy has other bytes than were saved" in self.complaint(place)

    def test_other_processes_than_the_first_look_at_sizes(self, place, monkeypatch) -> None:
        monkeypatch.setattr(processes, "is_first", lambda: False)
        whole = (place / "log.json").read_bytes()
        (place / "log.json").write_bytes(whole[:-1] + b" ")
        assert read_mapped(place).num_users == 40
        (place / "log.json").write_bytes(whole + b" ")
        assert "log.json has" in self.complaint(place)

    def test_another_version(self, place) -> None:
        about = json.loads((place / "log.json").read_text())
        (place / "log.json").write_text(json.dumps({**about, "version": 2}))
        manifest.seal(place)
        assert "of version 1 is expected, not 2" in self.complaint(place)

    @pytest.mark.parametrize(
        ("name", "values", "what"),
        [
            ("items", np.ones(300, np.int64), "a column of int32 is expected, found int64"),
            ("items", np.ones((300, 1), np.int32), r"found int32 (300, 1)"),
            ("items", np.ones(299, np.int32), "one value an event"),
            ("times", np.zeros(299), "one value an event"),
            ("user_ids", np.arange(3), "one more than users"),
        ],
    )
    def test_columns_that_do_not_fit(self, place, name, values, what) -> None:
        np.save(place / f"{name}.npy", values)
        manifest.seal(place)
        assert what in self.complaint(place)

    def test_no_column_of_items(self, place) -> None:
        (place / "log.json").write_text(json.dumps({"version": 1, "columns": ["offsets"]}))
        manifest.seal(place)
        assert "no column item" in self.complaint(place)

    def test_objects_are_not_unpickled(self, place) -> None:
        np.save(place / "user_ids.npy", np.array([object()], object))
        manifest.seal(place)
        assert "in .npy form is expected" in self.complaint(place)


class TestWriting:
    def test_nothing_half_written(self, tmp_path, log) -> None:
        def blocks():
            yield next(log.blocks())
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_mapped(tmp_path / "log", blocks(), log.user_ids, log.item_ids)
        assert list(tmp_path.iterdir()) == []

    def test_a_column_is_as_numpy_writes_it(self, tmp_path) -> None:
        for size in (0, 1, 5, 1000):
            column = ColumnFile(tmp_path / f"{size}.npy", np.float64)
            column.add(np.arange(size)[: size // 2])
            column.add(np.arange(size)[size // 2 :])
            column.close()
            np.save(tmp_path / "other.npy", np.arange(size, dtype=np.float64))
            found = (tmp_path / f"{size}.npy").read_bytes()
            assert found == (tmp_path / "other.npy").read_bytes()

    def test_simulated_logs_too(self, tmp_path) -> None:
        log = simulate(30, 60, seed=1).log
        write_mapped(tmp_path / "log", log.blocks(), log.user_ids, log.item_ids)
        same(read_mapped(tmp_path / "log"), log)
        assert mapped.checksum(tmp_path / "log")
