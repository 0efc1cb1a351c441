"""The artifact runs where this package cannot be imported, and says what `recommend` says."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from jax import export

from pdrec_jax.data.catalogue import Catalogue
from pdrec_jax.errors import UserError
from pdrec_jax.export import artifact
from pdrec_jax.export.__main__ import main
from pdrec_jax.export.artifact import write_artifact
from pdrec_jax.export.readme import SCRIPT, readme
from pdrec_jax.recommend.recommender import Recommender

FILES = {
    "README.md", "artifact.json", "item_ids.npy", "item_vectors.npy", "item_vectors.parquet",
    "parameters.npz", "recommend.jax", "user_vectors.jax",
}  # fmt: skip
# Shorter and longer than L = 16, with repeats and with an id that is not known.
HISTORIES = [["the hit", "item 3"], [f"item {n}" for n in range(1, 20)], ["item 9", "?", "item 9"]]


@pytest.fixture(scope="module")
def made(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact, written by the command line."""
    out = tmp_path_factory.mktemp("export") / "artifact"
    assert main([f"--workdir={texts}", f"--out={out}", "--k=20"]) == 0
    return out


def script_of(text: str) -> str:
    """The first Python code of a Markdown text."""
    return text.partition("```python\n")[2].partition("```")[0]


def padded(catalogue, histories: list[list[str]], length: int) -> np.ndarray:
    rows = np.zeros((len(histories), length), np.int32)
    for row, history in zip(rows, histories, strict=True):
        items = [n for n in catalogue.find(np.array(history)).tolist() if n][-length:]
        row[length - len(items) :] = items
    return rows


DOCS = Path(__file__).resolve().parents[2] / "docs" / "recommend.md"
SHOWN = script_of(DOCS.read_text(encoding="utf-8").partition("## Without this package")[2])


class TestScript:
    def test_the_same_top_20_without_this_package(self, texts: Path, made: Path) -> None:
        code = (
            "import sys\nsys.modules['pdrec_jax'] = None\nimport os, json\n"
            f"os.chdir({str(made.parent)!r})\n"
            f"{SHOWN}"
            "try:\n    import pdrec_jax\n    sys.exit('there')\nexcept ImportError:\n    pass\n"
            f"print(json.dumps(recommend({HISTORIES!r})))\n"
            "loaded = {name.partition('.')[0] for name in sys.modules}\n"
            "assert loaded.isdisjoint({'flax', 'optax', 'orbax', 'pyarrow', 'ml_collections'})\n"
        )
        # -I: neither the current folder nor PYTHONPATH is on the path.
        done = subprocess.run(
            [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        live = Recommender.load(texts).recommend(HISTORIES, k=20)
        assert json.loads(done.stdout) == [list(one.items) for one in live]

    def test_an_id_of_both_domains_is_the_targets(self) -> None:
        """As the catalogue has it, in which the target's items come first, and ids are text."""
        ids = np.array([7, 5, 5, 9])
        catalogue = Catalogue(np.array([0, *ids]), 2, 2, np.zeros(5, int), ())
        (line,) = [line for line in SCRIPT.splitlines() if line.startswith("number = ")]
        names: dict[str, Any] = {"ids": ids}
        exec(line, names)
        found = catalogue.find(np.array(["5", "7", "9"]))
        assert [names["number"][item] for item in "579"] == found.tolist() == [2, 1, 4]

    # The script leaves its file to be closed by the end of a process.
    @pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
    )
    def test_ids_are_held_together_as_text(
        self, texts: Path, made: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(made.parent)
        names: dict[str, Any] = {}
        exec(compile(SHOWN, "recommend.md", "exec"), names)
        histories = [[" the hit", "item 3\n"], [7]]
        live = Recommender.load(texts).recommend(histories[:1], k=5)
        assert names["recommend"](histories, 5) == [list(live[0].items), []]

    @pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
    )
    @pytest.mark.parametrize("histories", [[], [["zz"]], [[], ["zz"]], [["the hit"], ["zz"]]])
    def test_users_of_whom_no_item_is_known_get_none(
        self, made: Path, monkeypatch: pytest.MonkeyPatch, histories: list[list[str]]
    ) -> None:
        monkeypatch.chdir(made.parent)
        names: dict[str, Any] = {}
        exec(compile(SHOWN, "recommend.md", "exec"), names)
        lengths = [len(items) for items in names["recommend"](histories, 5)]
        assert lengths == [5 * ("the hit" in history) for history in histories]

    @pytest.mark.parametrize(
        "name", ["shop v2", "{0}", 'a"b\\n', "b\u00fccher \U0001f4da", "\udcff"]
    )
    def test_it_names_the_directory(self, name: str) -> None:
        manifest = {"data": "real", "items_recommended": 9, "length": 9, "width": 9, "k": 9}
        more = {"model": "SASRec", "written_by": {"jax": "1"}, "platforms": ["cpu"]}
        # As it is written to the file.
        text = readme({**manifest, **more}, name).encode("utf-8", "backslashreplace").decode()
        (line,) = [line for line in script_of(text).splitlines() if line.startswith("folder = ")]
        names: dict[str, Any] = {}
        exec(line, names)
        assert names["folder"] == f"{name}/"

    def test_it_is_that_of_the_artifact_and_about_ten_lines(self, made: Path) -> None:
        assert script_of((made / "README.md").read_text()) == SCRIPT == SHOWN
        assert len([line for line in SCRIPT.splitlines() if line.strip()]) <= 15


class TestContent:
    def test_files(self, made: Path) -> None:
        assert {path.name for path in made.iterdir()} == FILES
        manifest = json.loads((made / "artifact.json").read_text())
        assert manifest["variant"] == "sasrec+hbr+nns+dpa"
        assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
        figures = (manifest["length"], manifest["k"], manifest["items"], manifest["width"])
        assert figures == (16, 20, 44, 8)

    def test_scores_are_inner_products(self, texts: Path, made: Path) -> None:
        live = Recommender.load(texts)
        user_vectors = export.deserialize(bytearray((made / "user_vectors.jax").read_bytes()))
        parameters = dict(np.load(made / "parameters.npz"))
        users = user_vectors.call(parameters, padded(live.catalogue, HISTORIES, 16))
        items = np.load(made / "item_vectors.npy")
        ids = np.load(made / "item_ids.npy").tolist()
        np.testing.assert_allclose(np.linalg.norm(items, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(users, axis=1), 4, rtol=1e-5)
        scores = np.asarray(users) @ items.T
        for own, one in zip(scores, live.recommend(HISTORIES, k=20), strict=True):
            found = own[[ids.index(item) for item in one.items]]
            np.testing.assert_allclose(found, one.scores, rtol=1e-4, atol=1e-5)

    def test_any_number_of_users_and_of_seen_items(self, texts: Path, made: Path) -> None:
        model = export.deserialize(bytearray((made / "recommend.jax").read_bytes()))
        parameters = dict(np.load(made / "parameters.npz"))
        rows = padded(Recommender.load(texts).catalogue, HISTORIES, 16)
        together, _ = model.call(parameters, rows, np.zeros((3, 1), np.int32))
        alone, scores = model.call(parameters, rows[1:2], np.array([[3, 44, 999]], np.int32))
        left = [item for item in np.asarray(together)[1].tolist() if item not in (3, 44)]
        assert np.asarray(alone)[0, : len(left)].tolist() == left
        assert (np.diff(scores[0]) <= 0).all()

    def test_vectors_for_an_index(self, made: Path) -> None:
        table = pq.read_table(made / "item_vectors.parquet")
        vectors = np.load(made / "item_vectors.npy")
        assert table["item"].to_pylist() == np.load(made / "item_ids.npy").tolist()
        np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), vectors)

    def test_simulated_data_is_said(self, run: Path, tmp_path: Path, capsys) -> None:
        manifest = {"data": "simulated", "items_recommended": 9, "length": 9, "width": 9, "k": 9}
        more = {"model": "SASRec", "written_by": {"jax": "1"}, "platforms": ["cpu"]}
        assert "SIMULATED DATA" in readme({**manifest, **more}, "a")
        assert "SIMULATED DATA" not in readme({**manifest, **more, "data": "real"}, "a")


class TestEncoders:
    def test_a_history_alone_is_what_it_is_in_packed_rows(
        self, make_run: Callable[..., Path], tmp_path: Path
    ) -> None:
        run = make_run(tmp_path / "run", **{"encoder.name": "gru4rec"})
        live = Recommender.load(run)
        histories = [[5], [1, 2, 3], list(range(20, 40))]
        encoder = artifact.load_encoder(live.place, live.trained, live.catalogue, block=1)
        made = artifact.export_recommend(encoder.model, encoder.params, 300, 5)
        rows = padded(live.catalogue, [[str(i) for i in h] for h in histories], 16)
        flat, _ = artifact.flatten(encoder.params)
        items, scores = made.call(flat, rows, np.zeros((3, 1), np.int32))
        for one, own, found in zip(
            live.recommend(histories, k=5, include_seen=True), items, scores, strict=True
        ):
            assert own.tolist() == list(one.items)
            np.testing.assert_allclose(found, one.scores, rtol=1e-4)

    def test_platforms_that_cannot_be_lowered_are_left_out(
        self, texts: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = export.export

        def refuses(function, platforms):
            if "tpu" in platforms:
                raise NotImplementedError("no lowering rule for tpu")
            return whole(function, platforms=platforms)

        monkeypatch.setattr(export, "export", refuses)
        made = artifact._export(lambda flat: flat["a"] + 1, {"a": jax.numpy.ones(2)})
        assert made.platforms == ("cpu", "cuda")


class TestPlace:
    def test_a_link_stays(
        self, made: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(made, tmp_path / "old")
        (tmp_path / "old" / "recommend.jax").write_text("of before")
        (tmp_path / "link").symlink_to("old")
        monkeypatch.chdir(tmp_path)
        assert main([f"--workdir={texts}", "--out=link", "--k=20"]) == 0
        assert {path.name for path in (tmp_path / "old").iterdir()} == FILES
        assert (tmp_path / "link").is_symlink()
        assert 'folder = "link/"' in (tmp_path / "old" / "README.md").read_text()
        assert {path.name for path in tmp_path.iterdir()} == {"old", "link"}

    def test_where_the_command_is_run(
        self, made: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
    ) -> None:
        """Whoever ran it would be left in a directory that is gone."""
        shutil.copytree(made, tmp_path / "old")
        monkeypatch.chdir(tmp_path / "old")
        for out in (".", "../old", ".."):
            assert main([f"--workdir={texts}", f"--out={out}", "--k=20"]) == 2
            assert capsys.readouterr().err == (
                f"error: {out}: the command is run there; name another directory\n"
            )
        assert {path.name for path in Path().iterdir()} == FILES

    def test_a_model_that_is_no_numbers(self) -> None:
        with pytest.raises(UserError, match="run: b of its model is not finite"):
            artifact.require_finite({"a": np.ones(2), "b": np.array([1, np.nan])}, Path("run"))


class TestMistakes:
    def refused(self, capsys, complaint: str, *flags: str) -> None:
        assert main(list(flags)) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert complaint in err

    def test_a_diffusion_model(self, run: Path, tmp_path: Path, capsys) -> None:
        out = tmp_path / "artifact"
        flags = [f"--workdir={run}", f"--out={out}", "--variant=diffusion"]
        self.refused(capsys, "an encoder is expected", *flags)
        assert not out.exists()

    def test_it_is_found_before_the_model_is_loaded(
        self, run: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Recommender, "load", lambda *_: pytest.fail("loaded"))
        flags = [f"--workdir={run}", f"--out={tmp_path}/a", "--variant=diffusion"]
        self.refused(capsys, "an encoder is expected", *flags)

    def test_no_encoder_yet(self, run: Path, tmp_path: Path, capsys) -> None:
        shutil.copytree(run, tmp_path / "run")
        for path in (tmp_path / "run" / "phases").glob("sasrec*"):
            path.unlink()
        flags = [f"--workdir={tmp_path}/run", f"--out={tmp_path}/a"]
        self.refused(
            capsys,
            "no encoder is trained yet; the command that trains it resumes the run\n",
            *flags,
        )

    @pytest.mark.parametrize("flag", ["--workdir", "--out", "--config"])
    def test_an_empty_value(self, run: Path, tmp_path: Path, capsys, flag: str) -> None:
        flags = [f"--workdir={run}", f"--out={tmp_path}/a", f"{flag}="]
        self.refused(capsys, f"argument {flag}: a path is expected, got ''", *flags)

    def test_something_in_the_way(self, run: Path, tmp_path: Path, capsys) -> None:
        (tmp_path / "mine.txt").write_text("mine")
        self.refused(capsys, "is no artifact", f"--workdir={run}", f"--out={tmp_path}")
        self.refused(capsys, "is no artifact", f"--workdir={run}", f"--out={tmp_path}/mine.txt")
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    @pytest.mark.parametrize("text", ["{}", "[]", "{", '{"written_by": "me"}'])
    def test_somebody_elses_manifest(self, run: Path, tmp_path: Path, capsys, text: str) -> None:
        (tmp_path / "artifact.json").write_text(text)
        self.refused(capsys, "is no artifact", f"--workdir={run}", f"--out={tmp_path}")

    def test_what_would_be_deleted(self, made: Path, texts: Path, tmp_path: Path, capsys) -> None:
        shutil.copytree(made, tmp_path / "out")
        (tmp_path / "out" / "thesis.tex").touch()
        complaint = "out: holds 'thesis.tex', which is no part of an artifact and would be deleted"
        self.refused(capsys, complaint, f"--workdir={texts}", f"--out={tmp_path}/out")
        assert {path.name for path in (tmp_path / "out").iterdir()} == {*FILES, "thesis.tex"}

    def test_within_the_run(self, run: Path, capsys) -> None:
        self.refused(capsys, "is within the run", f"--workdir={run}", f"--out={run}/artifact")
        assert not (run / "artifact").exists()

    def test_an_artifact_that_holds_the_run(self, run: Path, tmp_path: Path, capsys) -> None:
        (tmp_path / artifact.MANIFEST).write_text("{}")
        shutil.copytree(run, tmp_path / "run")
        self.refused(capsys, "holds the run", f"--workdir={tmp_path}/run", f"--out={tmp_path}")
        assert (tmp_path / "run" / "config.json").is_file()

    def test_no_run(self, tmp_path: Path, capsys) -> None:
        flags = [f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}"]
        self.refused(capsys, "the workdir of a run is expected", *flags)
        self.refused(capsys, "a whole number from 1 to 10,000", *flags, "--k=-1")

    @pytest.mark.parametrize("name", ["recommend.jax", "item_vectors.parquet"])
    def test_a_full_disk_names_the_file_as_it_would_be(
        self, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        replace = os.replace

        def full(old: Path, new: Path) -> None:
            if Path(new).name == name:
                raise OSError(errno.EFBIG, "File too large")
            replace(old, new)

        monkeypatch.setattr(os, "replace", full)
        out = tmp_path / "artifact"
        with pytest.raises(UserError) as caught:
            write_artifact(Recommender.load(texts), out, 5)
        assert str(caught.value) == f"{out / name}: cannot write, disk full (File too large)"
        assert list(tmp_path.iterdir()) == []

    def test_an_earlier_artifact_is_replaced_or_stays(
        self, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "artifact"
        out.mkdir()
        (out / artifact.MANIFEST).write_text('{"written_by": {"pdrec_jax": "0.1"}}')
        live = Recommender.load(texts)

        def fail(*_: object) -> None:
            raise UserError("disk full")

        with monkeypatch.context() as patch:
            patch.setattr(artifact, "_write_parquet", fail)
            with pytest.raises(UserError, match="disk full"):
                write_artifact(live, out, 5)
        assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
        assert [path.name for path in out.iterdir()] == [artifact.MANIFEST]
        write_artifact(live, out, 5)
        assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
        assert {path.name for path in out.iterdir()} == FILES
