"""A log of one's own: filtered, reported, written as a whole, and read by the main job."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest

from pdrec_jax import files
from pdrec_jax.data import sources
from pdrec_jax.data.columns import Columns
from pdrec_jax.data.readers import read_log
from pdrec_jax.data.simulator import simulate
from pdrec_jax.errors import UserError
from pdrec_jax.files import atomic_write_text
from pdrec_jax.overrides import validate
from pdrec_jax.prepare import own
from pdrec_jax.prepare.batches import Skipped, read_batches
from pdrec_jax.prepare.own import Rules, prepare
from pdrec_jax.settings import FIELDS, default_config

WANTED = Columns("user", "item", "time")
NAMES = ("user_id", "item_id", "timestamp")  # as they are written
DAY = 86_400


@pytest.fixture
def make(tmp_path) -> Callable[..., dict]:
    """`make(rows, **rules)` prepares rows of (user, item, time) and returns what was written."""

    def make(rows: list, *, overwrite: bool = False, wanted: Columns = WANTED, **rules) -> dict:
        path = tmp_path / "log.csv"
        path.write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
        out = tmp_path / "out"
        text = prepare([path], wanted, out, Rules(**rules), overwrite=overwrite)
        table = pq.read_table(out / "log.parquet")
        columns = [table.column(name).to_pylist() for name in table.column_names]
        return {
            "text": text,
            "rows": list(zip(*columns, strict=True)),
            "names": table.column_names,
            **json.loads((out / "prepared.json").read_text()),
        }

    return make


def users(*names: str, items: str = "xyz", start: int = 0) -> list:
    return [(u, i, start + n * DAY) for u in names for n, i in enumerate(items)]


@pytest.fixture(scope="module")
def simulated() -> list:
    log = simulate(120, 300, seed=5).log
    owners, items = log.user_ids[log.event_users], log.item_ids[log.items]
    return [
        (f"user {u}", f"item {i}", int(t))
        for u, i, t in zip(owners.tolist(), items.tolist(), log.times, strict=True)
    ]


class TestRules:
    def test_order_and_ids(self, make) -> None:
        found = make(
            [("b", 10, 5), ("a", 9, 7), ("a", 10, 6), ("b", 9, 5), ("a", 9, 1), ("b", 9, 9)]
        )
        assert found["names"] == ["user_id", "item_id", "timestamp"]
        assert found["rows"] == [
            ("a", 9, 1), ("a", 10, 6), ("a", 9, 7), ("b", 10, 5), ("b", 9, 5), ("b", 9, 9),
        ]  # fmt: skip
        assert found["dropped"] == {}

    def test_what_is_dropped_and_why(self, make) -> None:
        rows = [*users("a", "b"), ("a", "x", 0), ("c", "x", 1), ("", "x", 1), ("a", "y", 1e300)]
        found = make(rows, unit="s")
        assert found["dropped"] == {
            "field 'user': empty": 1,
            "a time outside the years 1 to 9999": 1,
            "equal to an earlier record": 1,
            "a user with fewer than 3 records or an item with fewer than 1": 1,
        }
        assert (found["read"], len(found["rows"])) == (10, 6)
        for reason, count in found["dropped"].items():
            assert f"{count:>12,}  {reason}\n" in found["text"]

    def test_a_core(self, make) -> None:
        rows = [*users("a", "b", "c"), ("c", "rare", 1)]
        assert len(make(rows, least_of_item=2)["rows"]) == 9

    def test_duplicates(self, make) -> None:
        rows = [*users("a", "b"), ("a", "x", 9 * DAY), ("a", "y", 0)]
        assert len(make(rows, duplicates="keep")["rows"]) == 8
        first = make(rows, duplicates="first", overwrite=True)
        assert [row[1] for row in first["rows"]] == list("xyzxyz")
        last = make(rows, duplicates="last", overwrite=True)
        assert [row[1] for row in last["rows"]] == list("yzxxyz")

    @pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6)])
    def test_units(self, make, unit, factor) -> None:
        rows = [(u, i, (t + 1_600_000_000) * factor) for u, i, t in users("a", "b")]
        found = make(rows)
        assert [row[2] for row in found["rows"]] == [1_600_000_000 + n * DAY for n in range(3)] * 2
        assert (
            f"Times: {'milli' * (unit == 'ms')}{'micro' * (unit == 'us')}seconds" in found["text"]
        )
        given = make(rows, unit=unit, overwrite=True)
        assert given["rows"] == found["rows"]

    def test_dates(self, make) -> None:
        found = make(
            [(u, i, f"2020-01-0{n}T00:00:00Z") for u in "ab" for n, i in enumerate("zyx", start=1)]
        )
        assert [row[2] for row in found["rows"]] == [1_577_836_800 + n * DAY for n in range(3)] * 2
        assert "Times: dates" in found["text"]

    def test_without_times(self, make) -> None:
        found = make(users("b", "a"), wanted=Columns("user", "item", None))
        assert found["names"] == ["user_id", "item_id"]
        assert found["rows"] == [(u, i) for u in "ab" for i in "xyz"]
        assert found["config"]["data.time"] == ""
        assert found["config"]["diffusion.weighting"] == "position"
        assert "no times: the order of the rows is taken" in found["text"]

    def test_times_that_are_all_equal(self, make) -> None:
        found = make([(u, i, 5) for u, i, _ in users("b", "a", items="zyx")])
        assert [row[1] for row in found["rows"]] == list("zyxzyx")
        assert found["config"]["data.time"] == ""
        assert "all times are equal" in found["text"]

    def test_nothing_is_left(self, make, tmp_path) -> None:
        with pytest.raises(UserError) as caught:
            make(users("a", items="xy"))
        assert str(caught.value) == (
            "no record is left of 2 (2: a user with fewer than 3 records or an item with fewer "
            "than 1)"
        )
        with pytest.raises(UserError, match=r"^1 of 2 users have 3 or more records, at least 2"):
            make([*users("a"), ("b", "x", 1)], least_of_user=1)
        assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


class TestWarnings:
    def test_none(self, make, simulated) -> None:
        text = make(simulated)["text"]
        assert "carries no signal" not in text
        assert "99 % up to" in text

    def test_an_order_that_means_nothing(self, make) -> None:
        items = np.random.default_rng(0).integers(0, 50, (400, 8)).tolist()
        text = make([(u, items[u][n], n) for u in range(400) for n in range(8)])["text"]
        assert "the order of the records carries no signal" in text
        assert "50 items: so small a catalogue" in text

    def test_an_order_that_is_none_of_chance(self, make) -> None:
        rows = [(u, (u * 7 + n * n * (u % 11)) % 50, n) for u in range(400) for n in range(8)]
        text = make(rows)["text"]
        assert "neighbours recur less often than after a shuffle" in text
        assert "no signal" not in text

    def test_ties_cold_items_and_few_users(self, make) -> None:
        rows = [("a", i, 5) for i in "xyz"] + [("b", i, 6) for i in "pqr"]
        text = make(rows, least_of_user=1)["text"]
        assert "100.0 % of the users have their last two records at the same time" in text
        assert "100.0 % of the test items occur in no training part" in text
        assert "fewer than 100 users" in text
        assert "too few records to tell" in text
        assert "they may be ranks or another unit" in text

    def test_short_users(self, make) -> None:
        rows = [*users("a", "b"), ("c", "x", 5)]
        text = make(rows, least_of_user=1)["text"]
        assert "1 users have fewer than 3 records" in text

    def test_mixed_units(self, make) -> None:
        rows = [(u, i, t + 1_600_000_000) for u, i, t in users("a", "b", "c")]
        rows.append(("a", "y", 1_600_000_000_000))
        assert "units may be mixed" in make(rows)["text"]

    def test_seconds_among_milliseconds(self, make) -> None:
        rows = [(u, i, 1000 * (t + 1_600_000_000)) for u, i, t in users("a", "b", "c", "d")]
        rows += [(u, i, t + 1_600_000_000) for u, i, t in users("e", "f")]
        text = make(rows)["text"]
        assert "33.3 % of the times are too large or too small for the unit 'ms'" in text

    def test_a_unit_that_is_not_that_of_the_log(self, make) -> None:
        rows = [(u, i, t + 1_600_000_000) for u, i, t in users("a", "b", "c")]
        text = make(rows, unit="ms")["text"]
        assert "no time is of our age in the unit 'ms'" in text
        assert "mixed" not in text

    def test_zeros_stand_for_no_time(self, make) -> None:
        rows = [(u, i, t + 1_600_000_000) for u, i, t in users("a", "b", "c")]
        assert "1970" not in make(rows)["text"]
        for factor in (1, 1000):
            more = [(u, i, factor * t) for u, i, t in [*rows, ("a", "y", 0), ("b", "y", 0)]]
            text = make(more, overwrite=True)["text"]
            assert "2 times are 0, which is the year 1970" in text
        assert "the year 1970" not in make(users("a", "b", "c"), overwrite=True)["text"]  # ranks

    def test_days_without_hyphens(self, make) -> None:
        days = {"x": 20240131, "y": 20240201, "z": 20240202}
        text = make([(u, i, day) for u in "abc" for i, day in days.items()])["text"]
        assert "the times look like days that are written YYYYMMDD" in text
        assert "ranks" not in text
        days["y"] = 20240199
        text = make([(u, i, day) for u in "abc" for i, day in days.items()], overwrite=True)["text"]
        assert "YYYYMMDD" not in text

    def test_a_unit_of_dates(self, make) -> None:
        rows = [(u, i, f"2024-01-0{n}") for u in "abc" for n, i in enumerate("xyz", 1)]
        assert "--unit=ms is of no use: the times are dates" in make(rows, unit="ms")["text"]
        assert "--unit" not in make(rows, overwrite=True)["text"]

    def test_counters(self, make) -> None:
        text = make(users("a", "b", "c"), unit="s")["text"]
        assert "unit" not in text.partition("Warnings:")[2]


class TestDirectory:
    def test_files(self, make, tmp_path) -> None:
        found = make(users("a", "b"))
        out = tmp_path / "out"
        assert sorted(path.name for path in out.iterdir()) == [
            "log.parquet", "prepared.json", "report.txt",
        ]  # fmt: skip
        assert (out / "report.txt").read_text() == found["text"]
        assert found["config"]["name"] == "out"
        assert f"--config.data.path={out}\n" in found["text"]

    @pytest.mark.parametrize(
        "read",
        [
            read_log,
            lambda path: list(read_batches(path, Columns(*NAMES), Skipped(), lambda _: None)),
        ],
    )
    def test_a_byte_that_changed_is_no_other_log(self, make, simulated, tmp_path, read) -> None:
        make(simulated)
        path = tmp_path / "out" / "log.parquet"
        whole = path.read_bytes()
        read(path)
        for place in range(4, len(whole) - 2000, len(whole) // 40):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(UserError, match=r"log\.parquet: not a readable Parquet file"):
                read(path)

    def test_what_is_in_the_way(self, make, tmp_path) -> None:
        make(users("a", "b"))
        with pytest.raises(UserError, match=r"out: holds a prepared log; .* add --overwrite$"):
            make(users("a", "b"))
        assert len(make(users("a", "b", "c"), overwrite=True)["rows"]) == 9
        (tmp_path / "out" / "prepared.json").unlink()
        with pytest.raises(UserError, match=r"out: is there and was not made by this command"):
            make(users("a", "b"), overwrite=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "out"]

    def test_all_is_on_the_disk_before_it_has_its_name(self, make, tmp_path, monkeypatch) -> None:
        fsync, replace, synced = os.fsync, files.replace_directory, []

        def note(descriptor: int) -> None:
            synced.append(os.fstat(descriptor).st_ino)
            fsync(descriptor)

        def check(new: Path, old: Path) -> None:
            written = {path.stat().st_ino for path in (new, *new.iterdir())}
            assert written <= set(synced)
            replace(new, old)

        monkeypatch.setattr(os, "fsync", note)
        monkeypatch.setattr(own, "replace_directory", check)
        make(users("a", "b"))
        assert tmp_path.stat().st_ino == synced[-1]

    def test_what_others_have_put_there_stays(self, make, tmp_path) -> None:
        make(users("a", "b"))
        notes = tmp_path / "out" / "notes.txt"
        notes.write_text("mine")
        with pytest.raises(UserError, match=r"out: holds 'notes.txt', which this command did not"):
            make(users("a", "b", "c"), overwrite=True)
        assert notes.read_text() == "mine"

    @pytest.mark.parametrize("name", ["raw.csv", "log.parquet", "log/raw.csv"])
    @pytest.mark.parametrize("link", [False, True])
    def test_an_input_stays(self, make, tmp_path, name, link) -> None:
        make(users("a", "b"))
        path = tmp_path / "out" / name
        path.parent.mkdir(exist_ok=True)
        if link:
            path.unlink(missing_ok=True)
            path.symlink_to(tmp_path / "log.csv")
        elif not path.exists():
            (tmp_path / "log.csv").rename(path)
        with pytest.raises(UserError, match=r"^[^\n]*out: holds "):
            prepare([path], WANTED, tmp_path / "out", Rules(), overwrite=True)
        assert path.exists()

    def test_a_directory_that_may_not_be_read(self, make, tmp_path, monkeypatch) -> None:
        (tmp_path / "out").mkdir()
        monkeypatch.setattr(Path, "iterdir", Mock(side_effect=PermissionError(13, "Denied")))
        with pytest.raises(UserError, match=r"out: cannot write \(Denied\)$"):
            make(users("a", "b"))

    def test_an_empty_directory_is_free(self, make, tmp_path) -> None:
        (tmp_path / "out").mkdir()
        make(users("a", "b"))

    def test_a_link_stays(self, make, tmp_path) -> None:
        make(users("a", "b"))
        (tmp_path / "out").rename(tmp_path / "real")
        (tmp_path / "out").symlink_to("real")
        assert len(make(users("a", "b", "c"), overwrite=True)["rows"]) == 9
        assert (tmp_path / "out").is_symlink()
        assert pq.read_table(tmp_path / "real" / "log.parquet").num_rows == 9
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"log.csv", "out", "real"}

    @pytest.mark.parametrize("out", [".", "..", "../out"])
    def test_where_the_command_is_run(self, make, tmp_path, monkeypatch, out) -> None:
        """Whoever ran it would be left in a directory that is gone."""
        make(users("a", "b"))
        before = (tmp_path / "out" / "report.txt").read_text()
        monkeypatch.chdir(tmp_path / "out")
        with pytest.raises(UserError, match=rf"^{re.escape(out)}: the command is run there"):
            prepare([tmp_path / "log.csv"], WANTED, Path(out), Rules(), overwrite=True)
        assert Path("report.txt").read_text() == before

    def test_a_mount_point(self, make, tmp_path, monkeypatch) -> None:
        (tmp_path / "out").mkdir()
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "out")
        with pytest.raises(UserError, match=r"out: a file system begins there; name a directory"):
            make(users("a", "b"))

    def test_names_that_are_no_paths_for_arrow(self, make, tmp_path, monkeypatch) -> None:
        make(users("a", "b"))
        monkeypatch.chdir(tmp_path)
        for out in ("runs:a/mine", "~/mine", "\udce9"):
            assert prepare([tmp_path / "log.csv"], WANTED, Path(out), Rules())
            assert (Path(out) / "report.txt").is_file()
            assert pq.read_table(tmp_path / "out" / "log.parquet").num_rows == 6

    def test_the_old_log_stays_where_the_new_one_cannot_take_its_place(
        self, make, tmp_path, monkeypatch
    ) -> None:
        make(users("a", "b"))
        replace, calls = os.replace, []

        def fail(source: Path, target: Path) -> None:
            calls.append(target)
            # That of the directory: the first moves the old one away, the second fails.
            if Path(target).name == "out" and len([t for t in calls if Path(t).name == "out"]) == 1:
                raise KeyboardInterrupt
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(own.os, "replace", fail)
            patch.setattr(files, "_exchange", lambda *_: False)  # where names cannot be exchanged
            with pytest.raises(KeyboardInterrupt):
                make(users("a", "b", "c"), overwrite=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "out"]
        assert pq.read_table(tmp_path / "out" / "log.parquet").num_rows == 6

    def test_nothing_is_left_of_a_failure(self, make, tmp_path, monkeypatch) -> None:
        make(users("a", "b"))
        before = (tmp_path / "out" / "report.txt").read_text()

        def fail(path: Path, text: str) -> None:
            if path.name == "prepared.json":
                raise OSError(28, "No space left on device")
            atomic_write_text(path, text)

        monkeypatch.setattr(own, "atomic_write_text", fail)
        with pytest.raises(UserError, match="cannot write, disk full"):
            make(users("a", "b", "c"), overwrite=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "out"]
        assert (tmp_path / "out" / "report.txt").read_text() == before


class TestMainJob:
    def test_reads_log_and_settings(self, make, tmp_path, simulated) -> None:
        made = make(simulated)
        config = default_config()
        config.data.path, config.encoder.batch_size = str(tmp_path / "out"), 7
        adopted = sources.adopt(config, {"encoder.batch_size"})
        validate(adopted)
        assert config.name == "custom"
        assert adopted.name == "out"
        assert adopted.encoder.batch_size == 7
        assert adopted.encoder.max_length == made["config"]["encoder.max_length"]
        assert adopted.diffusion.hidden == (256,)
        log, source = sources.load(adopted, sources.find_files(adopted))
        assert log.num_users == made["figures"]["users"]
        assert log.num_items == made["figures"]["items"]
        assert log.num_events == made["figures"]["records"]
        assert set(log.user_ids.tolist()) == {row[0] for row in made["rows"]}
        assert [file["name"] for file in source["files"]] == ["log.parquet"]

    def test_every_setting_is_one_of_the_main_job(self, make) -> None:
        for field, value in make(users("a", "b"))["config"].items():
            assert FIELDS[field].fits(tuple(value) if isinstance(value, list) else value)

    @pytest.mark.parametrize(
        ("out", "name"), [("a\\b", "ab"), ("\\", "custom"), ("..\\ .", "custom"), ("a\nb", "ab")]
    )
    def test_the_name_is_one_that_it_takes(self, tmp_path, out, name) -> None:
        (tmp_path / "log.csv").write_text(
            "user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in users("a", "b"))
        )
        prepare([tmp_path / "log.csv"], WANTED, tmp_path / out, Rules())
        config = default_config()
        config.data.path = str(tmp_path / out)
        adopted = sources.adopt(config, ())
        validate(adopted)
        assert adopted.name == name

    def test_without_times(self, make, tmp_path) -> None:
        make(users("a", "b"), wanted=Columns("user", "item", None))
        config = default_config()
        config.data.path = str(tmp_path / "out")
        adopted = sources.adopt(config, ())
        log, _ = sources.load(adopted, sources.find_files(adopted))
        assert log.times is None
