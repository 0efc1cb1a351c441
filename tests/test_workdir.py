"""The directory of a run: what it accepts to be, what it writes and in which order."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from pdrec_jax import files, phase_records
from pdrec_jax.errors import UserError
from pdrec_jax.settings import default_config, put
from pdrec_jax.workdir import Workdir

SIMULATED: dict[str, Any] = {"source": "simulated", "files": []}
REAL = {"source": "real", "files": [{"name": "a.csv", "sha256": "01"}]}


def config_with(**values: Any) -> ConfigDict:
    config = default_config()
    for name, value in values.items():
        put(config, name.replace("__", "."), value)
    return config


def begun(path: Path, data: dict[str, Any] = SIMULATED, **values: Any) -> Workdir:
    place = Workdir(path, config_with(**values), data["source"])
    place.begin(data)
    return place


def complaint(path: Path, data: dict[str, Any] = SIMULATED, **values: Any) -> str:
    before = contents(path)
    with pytest.raises(UserError) as caught:
        begun(path, data, **values)
    assert contents(path) == before
    message = str(caught.value)
    assert message.startswith(f"{path}")
    assert "\n" not in message
    return message.removeprefix(f"{path}").removeprefix(": ")


def contents(path: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in path.rglob("*") if p.is_file()} if path.is_dir() else {}


class TestOpening:
    def test_looking_makes_nothing(self, tmp_path: Path) -> None:
        place = Workdir(tmp_path / "a" / "b", default_config(), "real")
        assert place.results() is None
        assert place.phases.find("diffusion") is None
        assert place.phases.all() == {}
        assert list(tmp_path.iterdir()) == []

    def test_a_new_one_holds_config_and_data(self, tmp_path: Path) -> None:
        begun(tmp_path / "a" / "b", REAL, seed=3)
        saved = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
        assert (saved["seed"], saved["encoder"]["variants"]) == (3, ["base", "hbr+nns+dpa"])
        assert json.loads((tmp_path / "a" / "b" / "data.json").read_text()) == REAL

    def test_an_empty_directory_will_do(self, tmp_path: Path) -> None:
        begun(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "data.json"]

    def test_the_same_run_is_taken_up(self, tmp_path: Path) -> None:
        begun(tmp_path, seed=3).phases.finish("diffusion", {"seconds": 1.5})
        again = begun(tmp_path, seed=3)
        assert again.phases.all() == {"diffusion": {"seconds": 1.5}}

    def test_fields_that_may_change_are_written_anew(self, tmp_path: Path) -> None:
        begun(tmp_path, stage="diffusion")
        begun(tmp_path, stage="all", save_seconds=1.0, data__dir="x", data__source="simulated")
        assert json.loads((tmp_path / "config.json").read_text())["stage"] == "all"

    def test_another_config(self, tmp_path: Path) -> None:
        begun(tmp_path)
        found = complaint(tmp_path, seed=1, encoder__width=8)
        assert found == (
            "holds a run with another config, which differs in encoder.width, seed; "
            "name another --workdir or remove it"
        )
        many = {f"encoder__{name}": 7 for name in ("blocks", "dropout", "epochs", "batch_size")}
        found = complaint(tmp_path, seed=1, dpa__coarse=9, **many)
        assert "encoder.dropout, encoder.epochs, ..; name" in found

    def test_the_simulation_is_unread_where_the_log_is_real(self, tmp_path: Path) -> None:
        begun(tmp_path / "real", REAL)
        begun(tmp_path / "real", REAL, simulation__num_users=30)
        begun(tmp_path / "simulated")
        found = complaint(tmp_path / "simulated", simulation__num_users=30)
        assert "differs in simulation.num_users; " in found

    def test_another_source_or_content_of_the_data(self, tmp_path: Path) -> None:
        begun(tmp_path, REAL)
        assert complaint(tmp_path).startswith(
            "holds a run on real data, and this one would be on simulated data; name"
        )
        other = {"source": "real", "files": [{"name": "a.csv", "sha256": "02"}]}
        assert complaint(tmp_path, other).startswith("holds a run on another content of a.csv")
        begun(tmp_path, {**REAL, "users": 3})
        begun(tmp_path, {"source": "real", "files": [{"name": "b.csv", "sha256": "01"}]})

    def test_files_that_are_no_run(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").touch()
        assert complaint(tmp_path) == "not empty and not a run; name another --workdir"
        assert complaint(tmp_path / "thesis.tex") == "a directory is expected"
        below = complaint(tmp_path / "thesis.tex" / "run")
        assert below == "cannot write (Not a directory)"

    def test_a_lost_record_of_the_data(self, tmp_path: Path) -> None:
        """A kill right after the config leaves none, and nothing else; what is more was trained."""
        begun(tmp_path)
        (tmp_path / "data.json").unlink()
        begun(tmp_path).phases.finish("diffusion", {})
        (tmp_path / "data.json").unlink()
        assert complaint(tmp_path).startswith("/data.json: missing, without which nobody knows")

    @pytest.mark.parametrize(
        ("name", "text"), [("config.json", "{"), ("config.json", "[1]"), ("data.json", "\0")]
    )
    def test_broken_files(self, tmp_path: Path, name: str, text: str) -> None:
        begun(tmp_path)
        (tmp_path / name).write_text(text)
        assert complaint(tmp_path).startswith(f"/{name}: ")


class TestPhases:
    @pytest.mark.parametrize(
        "record", [{"model": 3}, {"model": {"name": "x"}}, {"seconds": "1"}, {"effects": [1]}]
    )
    def test_an_unsealed_record_of_another_form(self, tmp_path: Path, capsys, record) -> None:
        place = begun(tmp_path)
        (tmp_path / "phases").mkdir()
        (tmp_path / "phases" / "diffusion.json").write_text(json.dumps(record))
        assert place.phases.find("diffusion") is None
        assert "not as they were written; diffusion counts as not done" in capsys.readouterr().err

    def test_records_and_arrays(self, tmp_path: Path) -> None:
        place = begun(tmp_path)
        ranks = np.array([0, np.nan, 2], np.float32)
        place.phases.finish("sasrec+hbr", {"model": {"name": "S"}}, {"full_rank": ranks})
        place.phases.finish("preferences", {"effects": {}})
        assert place.phases.find("sasrec+hbr") == {"model": {"name": "S"}}
        np.testing.assert_array_equal(place.phases.arrays("sasrec+hbr")["full_rank"], ranks)
        assert place.phases.arrays("preferences") == {}
        assert place.phases.all().keys() == {"sasrec+hbr", "preferences"}

    def test_a_phase_is_done_only_with_its_arrays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place = begun(tmp_path)

        def stop(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(phase_records, "atomic_savez", stop)
        with pytest.raises(KeyboardInterrupt):
            place.phases.finish("diffusion", {}, {"full_rank": np.zeros(3)})
        assert place.phases.find("diffusion") is None

    def test_results(self, tmp_path: Path) -> None:
        place = begun(tmp_path)
        place.save_per_user({"users": np.arange(3), "sasrec/full_rank": np.zeros(3)})
        assert place.results() is None
        assert place.per_user().keys() == {"users", "sasrec/full_rank"}
        place.finish({"stage": "all", "models": []})
        assert Workdir(tmp_path, default_config(), "simulated").results() == {
            "stage": "all",
            "models": [],
        }

    def test_broken_arrays(self, tmp_path: Path) -> None:
        place = begun(tmp_path)
        for name in ("sasrec", "text"):
            place.phases.finish(name, {}, {"full_rank": np.zeros(300)})
        path = tmp_path / "phases" / "sasrec.npz"
        path.write_bytes(path.read_bytes()[:700])
        with pytest.raises(UserError, match=r"sasrec\.npz: arrays in \.npz form are expected"):
            place.phases.arrays("sasrec")
        (tmp_path / "phases" / "text.npz").write_text("text")
        with pytest.raises(UserError, match=r"text\.npz: arrays in \.npz form are expected"):
            place.phases.arrays("text")


class TestDamage:
    """A phase whose files are not what was written counts as not done, and is told of once."""

    def finished(self, path: Path) -> Workdir:
        place = begun(path)
        record = {"model": {"name": "S", "ndcg": 0.25}, "seconds": 1}
        place.phases.finish("sasrec", record, {"full_rank": np.arange(300.0)})
        return begun(path)

    @pytest.mark.parametrize("kind", ["json", "npz"])
    def test_any_flipped_bit(self, tmp_path: Path, kind: str) -> None:
        place = self.finished(tmp_path)
        path = tmp_path / "phases" / f"sasrec.{kind}"
        random = np.random.default_rng(0)
        whole = path.read_bytes()
        for spot in random.integers(len(whole), size=60):
            data = bytearray(whole)
            data[spot] ^= 1 << int(random.integers(8))
            path.write_bytes(bytes(data))
            found = place.phases.find("sasrec")
            # A blank between two fields can become another blank.
            same = kind == "json" and not whole[spot : spot + 1].strip()
            assert found is None or same, (spot, bytes(data[max(0, spot - 20) : spot + 20]))
        path.write_bytes(whole)
        assert place.phases.find("sasrec") is not None

    @pytest.mark.parametrize("kind", ["json", "npz"])
    @pytest.mark.parametrize("how", ["cut", "missing"])
    def test_cut_or_missing(self, tmp_path: Path, capsys: Any, kind: str, how: str) -> None:
        place = self.finished(tmp_path)
        path = tmp_path / "phases" / f"sasrec.{kind}"
        path.write_bytes(path.read_bytes()[:-1])
        if how == "missing":
            path.unlink()
        assert place.phases.find("sasrec") is None
        assert place.phases.all() == {}
        warning = capsys.readouterr().err
        if (how, kind) != ("missing", "json"):  # which is as if it had never been done
            assert warning.count("\n") == 1
            assert warning.startswith(f"warning: {tmp_path}/phases/sasrec.json: ")
            assert warning.endswith("; sasrec counts as not done\n")

    def test_a_record_of_an_earlier_version_has_no_seal(self, tmp_path: Path) -> None:
        place = begun(tmp_path)
        (tmp_path / "phases").mkdir()
        (tmp_path / "phases" / "sasrec.json").write_text('{"seconds": 1}')
        assert place.phases.find("sasrec") == {"seconds": 1}


class TestLock:
    def test_another_process_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        path = tmp_path / "run"
        with begun(path).held(SIMULATED):
            before = contents(path)
            other = Workdir(path, default_config(), "simulated")
            with pytest.raises(UserError, match="another run is at work in it"):
                other.require_unlocked()
            with pytest.raises(UserError, match="another run is at work in it"):
                other.held(SIMULATED).__enter__()
            assert contents(path) == before
        assert not (path / ".lock").exists()
        other.require_unlocked()

    def test_a_run_that_began_since_the_first_look(self, tmp_path: Path) -> None:
        late = Workdir(tmp_path, config_with(seed=1), "simulated")
        with begun(tmp_path).held(SIMULATED):
            pass
        with pytest.raises(UserError, match="another config, which differs in seed; "):
            late.held(SIMULATED).__enter__()
        assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0

    def test_killed_before_the_config_was_there(self, tmp_path: Path) -> None:
        (tmp_path / ".lock").write_text("process 1 on elsewhere")
        with Workdir(tmp_path, default_config(), "simulated").held(SIMULATED):
            pass


class TestInterruptions:
    def test_killed_before_the_config_was_there(self, tmp_path: Path) -> None:
        (tmp_path / ".config.json.0123456789ab.tmp").write_text('{"se')
        begun(tmp_path)
        assert not list(tmp_path.glob(".*"))

    def test_what_a_killed_run_left_half_written_is_removed(self, tmp_path: Path) -> None:
        place = begun(tmp_path)
        (tmp_path / "phases").mkdir()
        left = [tmp_path / ".results.json.0.tmp", tmp_path / "phases" / ".sasrec.npz.0.tmp"]
        for path in left:
            path.touch()
        place.begin(SIMULATED)
        assert not any(path.exists() for path in left)

    @pytest.mark.parametrize("after", [0, 1])
    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        written = []

        def sync(descriptor: int) -> None:
            written.append(descriptor)
            if len(written) > after:
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(files.os, "fsync", sync)
        with pytest.raises(UserError, match=r"/config|data\.json: cannot write, disk full"):
            begun(tmp_path / "run")
        monkeypatch.undo()
        left = contents(tmp_path).keys()
        assert left <= {str(tmp_path / "run" / "config.json")}
        begun(tmp_path / "run")


@pytest.mark.parametrize("finished", [False, True])
def test_results_of_more_seeds_are_not_replaced(tmp_path: Path, finished: bool) -> None:
    begun(tmp_path / "a", REAL, seeds=5)
    if finished:
        Workdir.open(tmp_path / "a", several=True).finish({"seeds": [0, 1, 2, 3, 4]})
        with pytest.raises(UserError, match="has 5 seeds, whose results those of 2 would replace"):
            begun(tmp_path / "a", REAL, seeds=2)
        for odd in ({"seeds": 3}, {"seeds": None}, {}):
            Workdir.open(tmp_path / "a", several=True).finish(odd)
            begun(tmp_path / "a", REAL, seeds=2)
        Workdir.open(tmp_path / "a", several=True).finish({"seeds": [0, 1, 2, 3, 4]})
        # More of them were begun and not finished: what is there is still that of five.
        begun(tmp_path / "a", REAL, seeds=7)
        begun(tmp_path / "a", REAL, seeds=5)
    else:
        begun(tmp_path / "a", REAL, seeds=2)


class TestServing:
    def test_a_run_is_opened_with_its_config(self, tmp_path: Path) -> None:
        begun(tmp_path / "a", REAL, seed=3, diffusion__hidden=(8, 4))
        place = Workdir.open(tmp_path / "a")
        config = place.config
        assert (config.seed, config.diffusion.hidden) == (3, (8, 4))
        assert config.encoder.variants == ("base", "hbr+nns+dpa")
        assert place.data == REAL
        config.seed = 4
        assert place.config.seed == 3

    def test_a_field_that_the_run_is_too_old_to_know_has_its_default(self, tmp_path: Path) -> None:
        begun(tmp_path / "a")
        saved = json.loads((tmp_path / "a" / "config.json").read_text())
        del saved["encoder"]["width"], saved["seeds"]
        (tmp_path / "a" / "config.json").write_text(json.dumps(saved))
        assert Workdir.open(tmp_path / "a").config.encoder.width == 64

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            ('{"seeds": 3, "seed": 5}', "holds several seeds.*seed-5"),
            ('{"nonsense": 1}', "config.json: config.nonsense: unknown field"),
            ('{"encoder": 1}', "config.json: config.encoder: is a section"),
            ("[1]", "a JSON object is expected"),
        ],
    )
    def test_what_is_no_run_is_refused(self, tmp_path: Path, content: str, complaint: str) -> None:
        with pytest.raises(UserError, match="the workdir of a run is expected"):
            Workdir.open(tmp_path)
        (tmp_path / "config.json").write_text(content)
        (tmp_path / "data.json").write_text(json.dumps(SIMULATED))
        with pytest.raises(UserError, match=complaint):
            Workdir.open(tmp_path)
