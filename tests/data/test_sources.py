"""Where a run's log comes from: files by name and place, or the simulator."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from pdrec_jax.data.sources import (
    adopt,
    directories,
    find_files,
    load,
    require_times,
    validated,
)
from pdrec_jax.errors import UserError
from pdrec_jax.overrides import apply_protocol
from pdrec_jax.settings import default_config

ROWS = "user_id,item_id,timestamp\n" + "".join(f"{u},{u + i},{i}\n" for u in (1, 2) for i in (1, 2))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigDict:
    """Two logs by name; none of the three places exists yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PDREC_DATA", raising=False)
    config = default_config()
    config.data.target, config.data.auxiliary = "toy.csv", "game.csv"
    return config


@pytest.fixture
def place(tmp_path: Path) -> Callable[..., Path]:
    """`place(folder, *names)` makes a folder with these logs."""

    def place(folder: str, *names: str) -> Path:
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        for name in names:
            (path / name).write_text(ROWS)
        return path

    return place


def complaint(config: ConfigDict) -> str:
    with pytest.raises(UserError) as caught:
        find_files(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestFindFiles:
    def test_places_in_order(self, config, place, monkeypatch) -> None:
        place("data", "toy.csv", "game.csv")
        found = find_files(config)
        assert found == [Path("data/toy.csv"), Path("data/game.csv")]
        variable = place("variable", "toy.csv", "game.csv")
        monkeypatch.setenv("PDREC_DATA", str(variable))
        assert find_files(config) == [variable / "toy.csv", variable / "game.csv"]
        config.data.dir = str(place("own", "toy.csv"))
        assert find_files(config) == [Path(config.data.dir) / "toy.csv", variable / "game.csv"]
        assert directories(config) == [Path(config.data.dir), variable, Path("data")]

    def test_names_without_ending_and_packed(self, config, place) -> None:
        config.data.target, config.data.auxiliary = "toy", "game.inter"
        place("data", "toy.tsv", "game.inter.gz")
        assert find_files(config) == [Path("data/toy.tsv"), Path("data/game.inter.gz")]
        place("data", "game.inter")
        assert find_files(config)[1] == Path("data/game.inter")

    def test_a_nearer_place_wins_over_a_nearer_name(self, config, place, tmp_path) -> None:
        place("data", "toy.csv", "game.csv")
        config.data.dir = str(place("own", "toy.csv.gz"))
        assert find_files(config)[0] == tmp_path / "own" / "toy.csv.gz"

    def test_paths(self, config, place, tmp_path) -> None:
        place("logs", "toy.csv", "game.csv")
        config.data.target, config.data.auxiliary = str(tmp_path / "logs/toy.csv"), "logs/game.csv"
        assert find_files(config) == [tmp_path / "logs" / "toy.csv", Path("logs/game.csv")]

    def test_one_log(self, config, place) -> None:
        config.data.auxiliary = ""
        place("data", "toy.csv")
        assert find_files(config) == [Path("data/toy.csv")]

    def test_nothing_there_is_simulated_unless_real_is_asked_for(self, config) -> None:
        assert find_files(config) is None
        config.data.origin = "ask the authors"
        config.data.source = "real"
        assert complaint(config) == (
            "toy.csv and game.csv: not found in data; ask the authors; put the logs (.inter, .csv, "
            ".tsv, each also as .gz, or .parquet) into one of these directories, name another with "
            "--config.data.dir=DIR, or run on a simulated log with --config.data.source=simulated"
        )
        config.data.source = "simulated"
        assert find_files(config) is None

    @pytest.mark.parametrize("source", ["auto", "real"])
    def test_one_of_two_is_no_reason_to_simulate(self, config, place, source) -> None:
        place("data", "game.csv")
        config.data.source = source
        assert complaint(config).startswith("toy.csv: not found in data; put the logs")

    def test_simulated_ignores_what_is_there(self, config, place) -> None:
        place("data", "toy.csv", "game.csv")
        config.data.source = "simulated"
        assert find_files(config) is None

    @pytest.mark.parametrize("field", ["target", "auxiliary"])
    def test_a_path_that_is_wrong_is_never_simulated(self, config, field) -> None:
        config.data[field] = "logs/none.csv"
        assert complaint(config) == f"config.data.{field}: logs/none.csv: no such file"

    def test_directories_that_are_wrong(self, config, place, monkeypatch) -> None:
        place("data", "toy.csv", "game.csv")
        monkeypatch.setenv("PDREC_DATA", "none")
        assert complaint(config) == "$PDREC_DATA: none is no directory"
        config.data.dir = "data/toy.csv"
        assert complaint(config) == "config.data.dir: data/toy.csv is no directory"
        config.data.dir = "~nobody-of-that-name/data"
        assert complaint(config).endswith("~nobody-of-that-name/data: no such home directory")

    def test_no_target(self, config) -> None:
        config.data.target = ""
        expected = (
            "config.data.target: the name or path of a log is expected, or a prepared directory as "
            "config.data.path"
        )
        assert complaint(config) == expected
        config.data.auxiliary = ""
        assert find_files(config) is None
        config.data.source = "real"
        assert complaint(config) == expected


class TestLoad:
    def test_one_file(self, config, place) -> None:
        path = place("data", "toy.csv") / "toy.csv"
        log, source = load(config, [path])
        assert (log.num_users, log.num_items, log.domains) == (2, 3, None)
        digest = hashlib.sha256(ROWS.encode()).hexdigest()
        assert source == {"source": "real", "files": [{"name": "toy.csv", "sha256": digest}]}

    def test_two_files_are_two_domains(self, config, place) -> None:
        folder = place("data", "toy.csv", "game.csv")
        log, source = load(config, [folder / "toy.csv", folder / "game.csv"])
        assert (log.num_items, log.num_target_items, log.num_events) == (6, 3, 8)
        assert [file["name"] for file in source["files"]] == ["toy.csv", "game.csv"]

    def test_times_of_another_name_and_who_comes_first(self, config, place) -> None:
        folder = place("data", "toy.csv", "game.csv")
        (folder / "game.csv").write_text(ROWS.replace("timestamp", "order"))
        config.data.auxiliary_time = "order"
        files = [folder / "toy.csv", folder / "game.csv"]
        assert load(config, files)[0].domains.tolist() == [0, 1] * 4
        config.data.auxiliary_first = True
        assert load(config, files)[0].domains.tolist() == [1, 0] * 4

    def test_columns_and_ids_are_those_of_the_config(self, config, place) -> None:
        path = place("data") / "log.csv"
        path.write_text("who,what\na,x\na,y\n")
        config.data.user, config.data.item, config.data.time = "who", "what", ""
        log, source = load(config, [path])
        assert log.times is None
        expected = "the log has no times: behaviours are weighed by position, as in T-DiffRec"
        assert source["note"] == expected
        config.diffusion.weighting = "position"
        assert "note" not in load(config, [path])[1]
        config.data.ids = "integer"
        with pytest.raises(UserError, match=r"log\.csv: row 2, field 'who': "):
            load(config, [path])

    def test_stand_ins_for_times(self, config, place) -> None:
        path = place("data") / "log.csv"
        path.write_text(ROWS.replace("timestamp", "order"))
        require_times(config)
        config.data.time = "order"
        with pytest.raises(
            UserError, match=r"^config\.diffusion\.weighting: 'position' is expected"
        ):
            require_times(config)
        config.diffusion.weighting, config.diffusion.both = "position", True
        with pytest.raises(
            UserError, match=r"^config\.diffusion\.both: False is expected with data"
        ):
            require_times(config)
        config.diffusion.both = False
        require_times(config)
        note = load(config, [path])[1]["note"]
        assert "stand-ins for times, which say the order alone: behaviours are weighed by" in note

    def test_simulated(self, config) -> None:
        config.simulation.num_users, config.simulation.num_items = 20, 200
        config.simulation.num_source_items = 200
        log, source = load(config, None)
        assert (log.num_users, log.num_target_items, log.num_items) == (20, 200, 400)
        assert source == {
            "source": "simulated",
            "files": [],
            "note": "no real log was found (toy.csv): a simulated one took its place",
        }
        config.seed, config.data.source = 1, "simulated"
        other, source = load(config, None)
        assert other.items.tolist() != log.items.tolist()
        assert "note" not in source

    def test_a_simulated_log_without_times(self, config) -> None:
        config.simulation.num_users, config.simulation.num_items = 20, 200
        whole, _ = load(config, None)
        config.data.time = ""
        log, _ = load(config, None)
        assert whole.times is not None
        assert log.times is None
        np.testing.assert_array_equal(log.items, whole.items)


class TestPrepared:
    """A directory of `pdrec_jax.prepare`; tests/prepare/test_own.py has the way there."""

    @pytest.fixture
    def prepared(self, config, tmp_path) -> Callable[..., Path]:
        """`prepared(**chosen)` makes one with these settings."""

        def prepared(content: object) -> Path:
            path = tmp_path / "mine"
            path.mkdir(exist_ok=True)
            (path / "prepared.json").write_text(json.dumps(content))
            config.data.path = "mine"
            return path

        return prepared

    def test_without_one_nothing_changes(self, config) -> None:
        assert adopt(config, ()) is config

    def test_its_settings_but_for_those_set_by_hand(self, config, prepared) -> None:
        chosen = {"name": "mine", "data.time": "", "diffusion.hidden": [8, 4], "dpa.coarse": 9}
        prepared({"config": chosen})
        config.data.user, config.dpa.coarse = "who", 7
        found = adopt(config, {"data.path", "dpa.coarse"})
        assert (found.name, found.data.time, found.diffusion.hidden) == ("mine", "", (8, 4))
        assert (found.dpa.coarse, found.data.user, found.data.auxiliary) == (7, "user_id", "")
        assert find_files(found) == [Path("mine/log.parquet")]
        config.data.source = "simulated"
        assert find_files(config) is None

    def test_a_file_that_names_the_log_was_written_for_it(self, config, prepared) -> None:
        chosen = {"name": "mine", "data.time": "", "encoder.max_length": 33, "dpa.fine": 4}
        prepared({"config": chosen})
        config.name, config.encoder.max_length, config.data.time = "mean-a", 16, "when"
        config.data.auxiliary = "theirs"
        found = adopt(config, ())
        assert (found.name, found.encoder.max_length, found.dpa.fine) == ("mean-a", 16, 4)
        assert (found.data.auxiliary, found.data.time) == ("theirs", "")
        # Else it was written for another log, and has no more than its name to say.
        found = adopt(config, {"data.path"})
        assert (found.name, found.encoder.max_length, found.dpa.fine) == ("mean-a", 33, 4)
        assert (found.data.auxiliary, found.data.time) == ("", "")

    @pytest.mark.parametrize("other", ["theirs", "theirs/log.parquet"])
    def test_beside_another_log(self, config, prepared, tmp_path, other) -> None:
        prepared({"config": {"encoder.max_length": 33}})
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        (theirs / "prepared.json").write_text("{}")
        (theirs / "log.parquet").touch()
        config.data.auxiliary = other
        found = adopt(config, {"data.auxiliary"})
        assert found.encoder.max_length == 33
        assert find_files(found) == [Path("mine/log.parquet"), Path("theirs/log.parquet")]
        # A config file's own auxiliary log belongs to its own target.
        assert find_files(adopt(config, {"data.path"})) == [Path("mine/log.parquet")]
        (tmp_path / "toy.csv").write_text(ROWS)
        config.data.path, config.data.target = "", "toy.csv"
        assert find_files(config)[1] == Path("theirs/log.parquet")

    @pytest.mark.parametrize("other", ["mine", "mine/log.parquet", "./mine/../mine/log.parquet"])
    def test_beside_itself(self, config, prepared, other) -> None:
        (prepared({"config": {}}) / "log.parquet").touch()
        config.data.auxiliary = other
        with pytest.raises(UserError, match=r"auxiliary: another log than the target is expected"):
            find_files(adopt(config, {"data.auxiliary"}))

    @pytest.mark.parametrize("other", ["toy.csv", "toy", "./toy.csv"])
    def test_a_log_beside_itself(self, config, tmp_path, other) -> None:
        (tmp_path / "toy.csv").write_text(ROWS)
        config.data.target, config.data.auxiliary = "toy.csv", other
        with pytest.raises(UserError, match=r"auxiliary: another log than the target is expected"):
            find_files(config)

    def test_beside_one_that_is_mapped_or_missing(self, config, prepared, tmp_path) -> None:
        prepared({"config": {}})
        config.data.auxiliary = "theirs"
        with pytest.raises(UserError, match=r"auxiliary: theirs: no such file, nor a prepared"):
            find_files(adopt(config, {"data.auxiliary"}))
        (tmp_path / "theirs" / "log").mkdir(parents=True)
        (tmp_path / "theirs" / "prepared.json").write_text("{}")
        mapped = r"auxiliary: theirs/\S+ is mapped, and two logs"
        with pytest.raises(UserError, match=mapped):
            find_files(adopt(config, {"data.auxiliary"}))
        (tmp_path / "toy.csv").write_text(ROWS)
        config.data.path, config.data.target = "", "toy.csv"
        with pytest.raises(UserError, match=mapped):
            find_files(config)

    @pytest.mark.parametrize(
        ("protocol", "coarse", "expected"),
        [("strict", 400, 400), ("strict", 8, 8), ("reference", 400, 50), ("reference", 8, 8)],
    )
    def test_candidates_to_draw_from(self, config, prepared, protocol, coarse, expected) -> None:
        prepared({"config": {"dpa.coarse": coarse, "dpa.fine": 4}})
        config.protocol, config.strict_overrides = protocol, (("dpa.drawn", 1),)
        for by_hand in ({"data.path"}, {"data.path", "dpa.drawn"}):  # a sweep shares preferences
            found = adopt(apply_protocol(config, by_hand), by_hand)
            assert (found.dpa.coarse, found.dpa.fine) == (expected, 4)
        assert adopt(config, {"data.path", "dpa.coarse"}).dpa.coarse == 50

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([], "not written by `python -m pdrec_jax.prepare`"),
            ({}, "not written by `python -m pdrec_jax.prepare`"),
            ({"config": 1}, "not written by `python -m pdrec_jax.prepare`"),
            ({"config": {"dpa.wide": 1}}, "there is no field 'dpa.wide'"),
            ({"config": {"dpa.fine": 0}}, "dpa.fine: an integer of at least 1 is expected, got 0"),
        ],
    )
    def test_what_is_none(self, config, prepared, content, message) -> None:
        prepared(content)
        with pytest.raises(UserError) as caught:
            adopt(config, ())
        assert str(caught.value) == f"config.data.path: mine/prepared.json: {message}"

    def test_they_are_checked_with_its_settings(self, config, prepared) -> None:
        prepared({"config": {"dpa.coarse": 120}})
        config.dpa.fine, config.dpa.coarse = 60, 50
        # A config that draws has the log's candidates, with picks set by hand too.
        config.strict_overrides = (("dpa.coarse", 40), ("dpa.drawn", 1))
        by_hand = {"data.path", "dpa.fine", "dpa.drawn"}
        assert validated(config, by_hand).dpa.coarse == 120
        with pytest.raises(UserError, match=r"^config\.dpa\.fine: at most dpa\.coarse \(50\)"):
            validated(config, {*by_hand, "dpa.coarse"})
        config.dpa.fine = 0
        with pytest.raises(UserError, match=r"^config\.dpa\.fine: an integer of at least 1"):
            validated(config, ())

    def test_a_missing_one(self, config) -> None:
        config.data.path = "none"
        with pytest.raises(UserError, match=r"none/prepared\.json: cannot be read \(No such file"):
            adopt(config, ())
