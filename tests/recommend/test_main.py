"""The command line: what it writes and tells, and that every mistake is one line and no file."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from pdrec_jax.data import sources
from pdrec_jax.recommend.__main__ import main
from pdrec_jax.recommend.recommender import Recommender

Call = Callable[..., SimpleNamespace]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """`call(run, *flags)` runs the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(run: Path, *flags: str) -> SimpleNamespace:
        status = main([f"--workdir={run}", *flags])
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, out=out.splitlines(), err=err)

    return call


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class TestUsers:
    def test_what_is_told_and_written(self, run: Path, call: Call) -> None:
        Path("ids.txt").write_text("7\n3\nnobody\n7\n")
        done = call(run, "--users=ids.txt", "--k=5", "--out=recs.csv")
        assert (done.status, done.err) == (0, "")
        assert done.out == [
            "SIMULATED DATA | tiny | SASRec+HBR+NNS+DPA (validation NDCG@10 0.2000) | 300 items",
            "unknown: 1 users with an id that is not in the log, for instance 'nobody'",
            "by popularity: 1 users without an item that the model knows get the most popular ones",
            "recs.csv: 20 recommendations for 4 users",
            "SIMULATED DATA: the run's log was made by the simulator",
        ]
        rows = rows_of("recs.csv")
        assert [row["user"] for row in rows] == [
            u for u in ("7", "3", "nobody", "7") for _ in "12345"
        ]
        assert [row["rank"] for row in rows] == list("12345") * 4
        found = Recommender.load(run).recommend_users([7, 3, "nobody"], k=5)
        given = [row["item"] for row in rows]
        assert given == [str(item) for one in [*found, found[0]] for item in one.items]
        assert {path.name for path in Path().iterdir()} == {"ids.txt", "recs.csv"}

    def test_all_users(self, run: Path, call: Call) -> None:
        assert call(run, "--all_users", "--k=5", "--out=recs.parquet").status == 0
        table = pq.read_table("recs.parquet")
        assert table.num_rows == 5 * 80
        assert len(set(table["user"].to_pylist())) == 80

    def test_a_moved_log(self, texts: Path, call: Call) -> None:
        shutil.copy(texts.parent / "log.csv", "moved.csv")
        Path("ids.txt").write_text("u1")
        flags = ["--users=ids.txt", "--k=2", "--out=recs.csv", "--include_seen"]
        assert call(texts, *flags, "--log=moved.csv").out[0].startswith("real data | tiny | ")
        shutil.copy("moved.csv", "moved, 2026.csv")
        assert call(texts, *flags, "--log=moved, 2026.csv").status == 0
        assert call(texts, *flags, "--log=none.csv").err.startswith("error: none.csv: the log ")
        done = call(texts, *flags, "--log=moved.csv,moved.csv")
        assert done.err == "error: --log: as many files as log.csv expected, got 2\n"

    def test_programs_are_not_read_from_where_the_run_says(
        self, run: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        used: list[str] = []
        monkeypatch.setattr("pdrec_jax.compilation.use_cache", used.append)
        for setting in ("somewhere", "off"):
            shutil.copytree(run, tmp_path / setting)
            path = tmp_path / setting / "config.json"
            path.write_text(
                json.dumps(json.loads(path.read_text()) | {"compilation_cache": setting})
            )
            assert call(tmp_path / setting, "--all_users", "--k=5", "--out=recs.csv").status == 0
        assert used == ["auto", "off"]

    def test_a_moved_directory_of_a_prepared_log(
        self, texts: Path, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sources, "PREPARED_LOG", "log.csv")
        Path("shop").mkdir()
        Path("shop/prepared.json").touch()
        flags = ["--all_users", "--k=2", "--log=shop"]
        done = call(texts, *flags, "--out=recs.csv")
        assert done.err.startswith("error: shop/log.csv: the log of the run is not there; ")
        shutil.copy(texts.parent / "log.csv", "shop/log.csv")
        assert call(texts, *flags, "--out=recs.csv").status == 0
        done = call(texts, *flags, "--out=shop/log.csv")
        assert done.err.startswith("error: --out: shop/log.csv: is an input too (--log)")
        Path("shop/recs.csv").symlink_to("prepared.json")
        done = call(texts, *flags, "--out=shop/recs.csv")
        assert done.err.startswith("error: --out: shop/recs.csv: is an input too (--log)")


class TestHistories:
    def test_new_users(self, texts: Path, call: Call) -> None:
        Path("ann, bob.jsonl").write_text(
            "".join(
                json.dumps({"who": who, "what": what, "when": when}) + "\n"
                for who, what, when in [
                    ("ann", "item 3", 2),
                    ("ann", "the hit", 1),
                    ("bob", "a book", 1),
                    ("ann", "", 1),
                    ("ann", "a film", 9),
                ]
            )
        )
        flags = ["--histories=ann, bob.jsonl", "--user=who", "--item=what", "--time=when", "--k=5"]
        done = call(texts, *flags, "--out=recs.jsonl")
        assert done.status == 0
        assert done.out[1:] == [
            "skipped: 1 rows, field 'what': empty",
            "skipped: 2 events with an item that the model does not know, for instance 'a book'",
            "by popularity: 1 users without an item that the model knows get the most popular ones",
            "recs.jsonl: 10 recommendations for 2 users",
        ]
        rows = [json.loads(line) for line in Path("recs.jsonl").read_text().splitlines()]
        (ann,) = Recommender.load(texts).recommend([["the hit", "item 3"]], k=5)
        assert [row["item"] for row in rows if row["user"] == "ann"] == list(ann.items)
        bob = [row for row in rows if row["user"] == "bob"]
        assert bob[0]["item"] == "the hit"
        assert {(row["score"], row["basis"]) for row in bob} == {(None, "popularity")}


class TestMistakes:
    @pytest.mark.parametrize(
        ("flags", "complaint"),
        [
            (["--users=none.txt"], "none.txt: no such file"),
            (["--users=empty.txt"], "empty.txt: no ids, one a line is expected"),
            (["--histories=none.csv"], "none.csv: no such file"),
            (["--histories=empty.txt"], "unknown suffix"),
            (["--histories=bad.csv"], "bad.csv: row 1 (header): no column 'user_id'"),
            (["--histories="], "--histories: a file is expected"),
            (["--histories=bad.csv", "--user=item_id"], "different columns are expected"),
            (["--all_users", "--variant=hbr"], "--variant: "),
            (["--all_users", "--k=0"], "a whole number from 1 to 10,000"),
            (["--all_users", "--k=\u00b2"], "a whole number from 1 to 10,000"),
            (["--all_users", "--out=recs.txt"], "one of .parquet, .csv, .jsonl is expected"),
            (["--all_users", "--out=none/recs.csv"], "--out: none/recs.csv: cannot write (none is"),
            (["--all_users", "--out="], "argument --out: a path is expected, got ''"),
            (["--all_users", "--config="], "argument --config: a path is expected, got ''"),
            (["--all_users", "--workdir="], "argument --workdir: a path is expected, got ''"),
            (["--users="], "argument --users: a path is expected, got ''"),
            (["--all_users", "--config=none.py"], "--config: none.py: no such file"),
            ([], "one of the arguments --users --all_users --histories is required"),
            (["--all_users", "--user=x"], "--user: goes with --histories"),
            (["--all_users", "--item=x"], "--item: goes with --histories"),
            (["--users=empty.txt", "--time=x"], "--time: goes with --histories"),
            (["--histories=bad.csv", "--log=x"], "--log: goes with --users and --all_users"),
            (["--histories=bad.csv", "--log="], "--log: goes with --users and --all_users"),
            (["--all_users", "--log="], "--log: a file is expected"),
            (["--all_users", "--log=none.csv"], "--log: the run's log was simulated, and is"),
            (["--all_users", "--nonsense"], "unrecognized arguments: --nonsense"),
        ],
    )
    def test_one_line_and_no_file(self, run: Path, call: Call, flags, complaint) -> None:
        Path("empty.txt").write_text("\n")
        Path("bad.csv").write_text("who,item_id\na,1\n")
        before = sorted(Path().iterdir())
        done = call(run, "--out=recs.csv", *flags)
        assert done.status == 2
        assert complaint in done.err
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
        assert sorted(Path().iterdir()) == before

    @pytest.mark.parametrize("out", ["in.csv", "./in.csv", "soft.csv", "hard.csv"])
    @pytest.mark.parametrize("flag", ["--histories=other.csv,", "--users=", "--all_users --log="])
    def test_an_input_is_not_overwritten(self, run: Path, call: Call, flag, out) -> None:
        Path("in.csv").write_text("user_id,item_id\na,1\n")
        Path("soft.csv").symlink_to("in.csv")
        Path("hard.csv").hardlink_to("in.csv")
        before = sorted(Path().iterdir())
        for name, other in (("in.csv", out), (out, "in.csv")):
            done = call(run, *f"{flag}{name}".split(), f"--out={other}")
            assert done.status == 2
            assert done.err.startswith(f"error: --out: {Path(other)}: is an input too (--")
            assert done.err.count("\n") == 1
        assert Path("in.csv").read_text() == "user_id,item_id\na,1\n"
        assert sorted(Path().iterdir()) == before

    def test_the_log_where_it_was_is_not_overwritten(self, texts: Path, call: Call) -> None:
        Path("new.csv").write_text("user_id,item_id\na,the hit\n")
        log = texts.parent / "log.csv"
        before = log.read_text()
        done = call(texts, "--histories=new.csv", f"--out={log}")
        assert (done.status, log.read_text()) == (2, before)
        assert "is an input too (the run's log)" in done.err

    def test_a_file_of_the_run_is_not_overwritten(self, run: Path, call: Call) -> None:
        Path("in.csv").write_text("user_id,item_id\na,1\n")
        own = run / "metrics.jsonl"
        own.write_text("{}")
        done = call(run, "--histories=in.csv", f"--out={own}")
        assert (done.status, own.read_text()) == (2, "{}")
        assert (
            done.err == f"error: --out: {own}: is within the run {run}; name a place outside it\n"
        )
        own.unlink()
        Path("link.csv").hardlink_to(run / "config.json")
        done = call(run, "--histories=in.csv", "--out=link.csv")
        assert done.err.startswith("error: --out: link.csv: is an input too (the run)")

    def test_a_new_file_within_the_run(self, run: Path, call: Call) -> None:
        """The same command given again would take it for the run's."""
        done = call(run, "--all_users", f"--out={run}/recs.csv")
        assert (done.status, done.out) == (2, [])
        assert done.err.startswith(f"error: --out: {run}/recs.csv: is within the run")
        assert not (run / "recs.csv").exists()

    @pytest.mark.parametrize("k", ["00000199999999", "0000", "10001"])
    def test_zeros_before_a_number(self, run: Path, call: Call, k) -> None:
        done = call(run, "--all_users", f"--k={k}", "--out=x.csv")
        assert done.err.startswith("error: argument --k: a whole number from 1 to 10,000")

    def test_a_phase_of_another_form(self, run: Path, call: Call, tmp_path: Path) -> None:
        shutil.copytree(run, tmp_path / "odd")
        (tmp_path / "odd" / "phases" / "sasrec.json").write_text('{"model": {"name": "x"}}')
        done = call(tmp_path / "odd", "--all_users", "--out=x.csv")
        assert done.status == 2
        assert "sasrec.json: it or its arrays are not as they were written; the command" in done.err

    def test_a_bad_row_late_leaves_the_former_file(self, run: Path, call: Call) -> None:
        Path("recs.csv").write_text("of yesterday")
        Path("ids.txt").write_bytes(b"1\n" * 2000 + b"\xff\n")
        done = call(run, "--users=ids.txt", "--k=5", "--out=recs.csv")
        assert "ids.txt: row 2001: " in done.err
        assert Path("recs.csv").read_text() == "of yesterday"
        assert {path.name for path in Path().iterdir()} == {"ids.txt", "recs.csv"}

    def test_a_directory_as_the_file(self, run: Path, call: Call) -> None:
        Path("recs.csv").mkdir()
        assert (
            "is a directory, a file is expected" in call(run, "--all_users", "--out=recs.csv").err
        )
