"""The command: what it prints and writes, and that each mistake is one line."""

import contextlib
import io
from types import SimpleNamespace

import pytest

from pdrec_jax.errors import UserError
from pdrec_jax.inspect.__main__ import main
from pdrec_jax.inspect.trained import find_user, log_files


def call(*flags: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(flags)
    return status, out.getvalue(), err.getvalue()


def test_text_and_page(workdir, tmp_path) -> None:
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    page = tmp_path / "user.html"
    user = '<i onclick="x()">& co'
    status, out, err = call(f"--workdir={workdir}", f"--user={user}", f"--html={page}", "--top=3")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == ["real data | nasty | protocol strict | seed 0", f"user {user}"]
    assert lines[-1].startswith("Real data: log.csv")
    assert "<h1>User &lt;i onclick=&quot;x()&quot;&gt;&amp; co</h1>" in page.read_text()
    assert list(tmp_path.iterdir()) == [page]
    after = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    assert after == before  # a look changes nothing


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--workdir={run}", "--user=x", "--html={run}/page.html"), "page.html: is within the run"),
        ((), "required: --workdir, --user"),
        (("--workdir=x",), "required: --user"),
        (("--workdir={run}", "--user=nobody"), "has no user 'nobody'"),
        (("--workdir={run}", "--user="), "has no user ''"),
        (("--workdir={here}/none", "--user=user 1"), "the workdir of a run is expected"),
        (("--workdir={run}/phases", "--user=user 1"), "the workdir of a run is expected"),
        (("--workdir={run}", "--user=user 9", "--top=0"), "a whole number from 1 to 1,000"),
        (("--workdir={run}", "--user=user 9", "--strange"), "unrecognized arguments"),
        (("--workdir={run}", "--user=user 9", "--html={here}/no/page.html"), "cannot write"),
        (("--workdir={run}", "--user=user 9", "--html={here}"), "is a directory, a file is"),
        (("--workdir={run}", "--user=user 9", "--html="), "--html: a path is expected, got ''"),
        (("--workdir=", "--user=user 9"), "--workdir: a path is expected, got ''"),
        (("--workdir={run}", "--user=user 9", "--config="), "--config: a path is expected, got ''"),
        (("--workdir={run}", "--user=user 9", "--config={here}/no.py"), "no such file"),
        (("--workdir={run}", "--user=user 9", "--log="), "--log: a file is expected"),
    ],
)
def test_a_mistake_is_one_line(workdir, tmp_path, flags, message) -> None:
    filled = [flag.format(run=workdir, here=tmp_path) for flag in flags]
    status, out, err = call(*filled)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_page_without_a_place_is_found_before_the_models_are_scored(tmp_path) -> None:
    status, _, err = call("--workdir=none", "--user=x", f"--html={tmp_path}/no/page.html")
    assert status == 2
    assert err.startswith(f"error: --html: {tmp_path}/no/page.html: cannot write ({tmp_path}/no is")


def test_blanks_around_a_user_are_ignored(run) -> None:
    assert find_user(run, " user 9 ").index == find_user(run, "user 9").index


def test_a_moved_directory_of_a_prepared_log(tmp_path) -> None:
    for name in ("prepared.json", "log.parquet"):
        (tmp_path / name).touch()
    real = SimpleNamespace(
        path=tmp_path / "run", data={"source": "real", "files": [{"name": "log.parquet"}]}
    )
    assert log_files(real, [tmp_path]) == [tmp_path / "log.parquet"]
    (tmp_path / "log").mkdir()
    assert log_files(real, [tmp_path]) == [tmp_path / "log"]
    assert log_files(real, [tmp_path / "log"]) == [tmp_path / "log"]


def test_a_log_of_a_run_that_simulated_its_own(tmp_path) -> None:
    simulated = SimpleNamespace(path=tmp_path, data={"source": "simulated"})
    assert log_files(simulated, []) is None
    with pytest.raises(UserError, match=r"^--log: the run's log was simulated, and is simulated "):
        log_files(simulated, [tmp_path / "log.csv"])


def test_a_moved_log_whose_name_has_a_comma(workdir, config, tmp_path) -> None:
    moved = tmp_path / "log, 2026.csv"
    moved.write_bytes((config.parent / "log.csv").read_bytes())
    flags = [f"--workdir={workdir}", "--user=nobody", f"--log={moved}", f"--config={config}"]
    status, _, err = call(*flags)
    assert status == 2
    assert "has no user 'nobody'" in err  # who was looked for in the log
    log = config.parent / "log.csv"
    status, _, err = call(*flags, f"--log={log},{log}")
    assert (status, err) == (2, "error: --log: as many files as log.csv expected, got 2\n")


def test_an_input_is_not_overwritten(workdir, config, tmp_path) -> None:
    log, link = config.parent / "log.csv", tmp_path / "link.html"
    link.symlink_to(log)
    before = log.read_bytes(), config.read_bytes()
    own = tmp_path / "own.html"
    own.hardlink_to(workdir / "config.json")
    for page, what in (
        *((log, "the run's log"), (link, "the run's log"), (config, "--config"), (own, "the run")),
    ):
        flags = [f"--workdir={workdir}", "--user=user 9", f"--html={page}", f"--config={config}"]
        status, out, err = call(*flags)
        assert (status, out) == (2, "")
        assert err.startswith(f"error: --html: {page}: is an input too ({what})")
        assert err.count("\n") == 1
    assert (log.read_bytes(), config.read_bytes()) == before
    assert link.is_symlink()
