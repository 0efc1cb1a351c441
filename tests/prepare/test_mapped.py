"""A log that is prepared on the disk is the log that is prepared in memory."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pdrec_jax.data import interactions, scratch, sources
from pdrec_jax.data.columns import Columns
from pdrec_jax.data.interactions import Interactions
from pdrec_jax.errors import UserError
from pdrec_jax.prepare import figures, filters, mapped, own, raw_log
from pdrec_jax.prepare.__main__ import main
from pdrec_jax.prepare.own import Rules, prepare
from pdrec_jax.settings import default_config

WANTED = Columns("user", "item", "time")
FIELDS = ("offsets", "items", "times", "user_ids", "item_ids")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch) -> None:
    """Blocks of a few records, and ids that are settled often."""
    for module in (scratch, interactions, filters):
        monkeypatch.setattr(module, "EVENTS_A_BLOCK", 53)
    monkeypatch.setattr(scratch.user_blocks, "__defaults__", (53,))
    monkeypatch.setattr(raw_log, "_ROWS_TOGETHER", 7)
    # Else the unit is guessed from a sample.
    monkeypatch.setattr(figures, "_SAMPLE", 700)


@pytest.fixture
def rows() -> list[tuple[str, str, object]]:
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 60, 900), (40 * rng.random(900) ** 2).astype(int)
    times = 1_600_000_000 + 86_400 * rng.integers(0, 30, 900)
    return [(f"u{u}", f"i{i}", t) for u, i, t in zip(users, items, times, strict=True)]


@pytest.fixture
def both(tmp_path) -> Callable[..., tuple[Path, Path]]:
    """`both(rows, **rules)` prepares rows in memory and on the disk; their reports are the same."""

    def both(rows: list, wanted: Columns = WANTED, **rules) -> tuple[Path, Path]:
        files = []
        # Two files, so that there are several batches.
        for number, some in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
            files.append(tmp_path / f"{number}.csv")
            lines = "".join(f"{u},{i},{t}\n" for u, i, t in some)
            files[-1].write_text("user,item,time\n" + lines)
        places = tmp_path / "a" / "log", tmp_path / "b" / "log"
        texts = [
            prepare(files, wanted, place, Rules(**rules, mapped=mapped))
            for place, mapped in zip(places, (False, True), strict=True)
        ]
        assert texts[0].replace(str(places[0]), "OUT") == texts[1].replace(str(places[1]), "OUT")
        summaries = [(place / "prepared.json").read_text() for place in places]
        assert summaries[0] == summaries[1]
        return places

    return both


def read(place: Path) -> Interactions:
    """The log as the main job reads it."""
    config = default_config()
    config.data.path = str(place)
    config = sources.adopt(config, ())
    return sources.load(config, sources.find_files(config))[0]


def same(places: tuple[Path, Path]) -> Interactions:
    expected, found = map(read, places)
    assert found.mapped
    assert not expected.mapped
    for name in FIELDS:
        one, other = getattr(found, name), getattr(expected, name)
        if other is None:
            assert one is None
        else:
            np.testing.assert_array_equal(one, other, name)
            assert one.dtype == other.dtype, name
    return found


@pytest.mark.parametrize("duplicates", ["exact", "first", "last", "keep"])
def test_the_same_log(both, rows, duplicates) -> None:
    assert same(both(rows, duplicates=duplicates)).num_events > 400


def test_a_core(both, rows) -> None:
    places = both(rows, least_of_user=11, least_of_item=14)
    found = same(places)
    assert 0 < found.num_events < 600
    dropped = json.loads((places[1] / "prepared.json").read_text())["dropped"]
    assert "a user with fewer than 11 records or an item with fewer than 14" in dropped


def test_integer_ids_bad_rows_and_times_out_of_range(both, rows) -> None:
    bad = [("", "7", 1.6e9), ("5", "7", "never"), ("5", "7", 1e300), (" 5 ", "7", 1.6e9)]
    changed = [(u[1:], i[1:], t) for u, i, t in rows]
    found = same(both([*changed[:450], *bad, *changed[450:]], unit="s"))
    assert found.user_ids.dtype == np.int64


def test_ids_that_are_integers_once_others_are_dropped(both, rows) -> None:
    numbers = [(u[1:], i[1:], t) for u, i, t in rows]
    found = same(both([*numbers[:450], ("guest", "promo", 1_600_000_000), *numbers[450:]]))
    for ids in (found.user_ids, found.item_ids[1:]):
        assert ids.dtype == np.int64
        assert (np.diff(ids) > 0).all()
    assert found.num_users == 60


def test_units_and_dates(both, rows) -> None:
    same(both([(u, i, 1000 * t) for u, i, t in rows]))


def test_dates(both, rows) -> None:
    stamped = np.array([t for _, _, t in rows], "datetime64[s]").astype(str)
    same(both([(u, i, f"{d}Z") for (u, i, _), d in zip(rows, stamped, strict=True)]))


def test_without_times(both, rows) -> None:
    assert same(both(rows, wanted=Columns("user", "item", None))).times is None


def test_equal_times_are_left_out(both, rows) -> None:
    assert same(both([(u, i, 1_600_000_000) for u, i, _ in rows])).times is None


def test_the_checksum_of_the_files_tells_logs_apart(both, rows) -> None:
    _, place = both(rows)
    config = default_config()
    config.data.path = str(place)
    found = sources.load(config, sources.find_files(config))[1]
    assert found["source"] == "real"
    assert len(found["files"][0]["sha256"]) == 64


def test_nothing_is_left(tmp_path) -> None:
    (tmp_path / "log.csv").write_text("user,item,time\na,x,1\n")
    with pytest.raises(UserError, match="no record is left of 1"):
        prepare([tmp_path / "log.csv"], WANTED, tmp_path / "out", Rules(mapped=True))
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_a_break_leaves_nothing_half_written(tmp_path, rows, monkeypatch) -> None:
    lines = "".join(f"{u},{i},{t}\n" for u, i, t in rows)
    (tmp_path / "log.csv").write_text("user,item,time\n" + lines)

    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(own, "measure_log", broken)
    with pytest.raises(KeyboardInterrupt):
        prepare([tmp_path / "log.csv"], WANTED, tmp_path / "out", Rules(mapped=True))
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_words_keep_their_places_as_the_list_grows() -> None:
    rng, spool, told = np.random.default_rng(1), raw_log._Spool(), []
    for size in (3, 50, 1, 200, 8):
        words = [f"w{n}" for n in rng.integers(0, 150, size)]
        told += words
        spool.add(pa.array(words).dictionary_encode())
    found = spool.vocabulary()
    ids = found.ids.to_pylist()
    assert ids == sorted(set(told))
    assert [ids[code] for code in found.codes] == told


def test_records_of_users_without_any_are_no_trouble() -> None:
    records = filters.Records(np.array([4, 1, 4], np.int32), np.array([0, 1, 2], np.int32), None)
    found = mapped.in_order(records, 9, "", False)
    assert found.lengths.tolist() == [0, 1, 0, 0, 2, 0, 0, 0, 0]
    assert found.records.users.tolist() == [1, 4, 4]
    assert found.records.items.tolist() == [1, 0, 2]


def test_the_command(tmp_path, rows, capsys) -> None:
    lines = "".join(f"{u},{i},{t}\n" for u, i, t in rows)
    (tmp_path / "log.csv").write_text("user,item,time\n" + lines)
    names = [f"--{name}={name}" for name in ("user", "item", "time")]
    flags = [f"--input={tmp_path / 'log.csv'}", *names, f"--out={tmp_path / 'out'}", "--mapped"]
    assert main(flags) == 0
    assert "Train on it" in capsys.readouterr().out
    assert read(tmp_path / "out").mapped
    assert main(flags) == 2  # it is there
    assert main([*flags, "--overwrite"]) == 0
    assert main(["--dataset=amazon", "--out=x", "--mapped"]) == 2
    assert "goes with --input" in capsys.readouterr().err


def test_figures_of_a_log_are_those_of_its_records(both, rows) -> None:
    log = read(both(rows)[1])
    records = filters.Records(
        log.event_users.astype(np.int32), log.items - np.int32(1), np.asarray(log.times)
    )
    found = dataclasses.asdict(figures.measure_log(log))
    assert found == dataclasses.asdict(figures.measure(records))
    assert found["order"] is not None or found["records"] > 0
