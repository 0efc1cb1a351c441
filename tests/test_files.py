import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pdrec_jax import files
from pdrec_jax.errors import UserError


def test_bytes_and_text_are_written_as_given(tmp_path: Path) -> None:
    files.atomic_write_bytes(tmp_path / "a.bin", b"\x00\xff\r\n")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff\r\n"
    files.atomic_write_text(str(tmp_path / "b.txt"), "α\r\nβ\n")
    assert (tmp_path / "b.txt").read_bytes() == "α\r\nβ\n".encode()


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("a much longer text than the new one")
    files.atomic_write_text(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_new_file_has_the_rights_of_any_other(tmp_path: Path) -> None:
    files.atomic_write_text(tmp_path / "ours", "")
    (tmp_path / "plain").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_savez_keeps_names_with_slashes_dtypes_and_reserved_words(tmp_path: Path) -> None:
    ranks = np.array([0, np.nan, 2.5], np.float32)
    ids = np.array(["a", "bcd"])
    path = tmp_path / "per_user.npz"
    files.atomic_savez(path, **{"sasrec/full_rank": ranks, "users": ids, "path": ranks})
    with np.load(path, allow_pickle=False) as loaded:
        assert sorted(loaded.files) == ["path", "sasrec/full_rank", "users"]
        np.testing.assert_array_equal(loaded["sasrec/full_rank"], ranks, strict=True)
        np.testing.assert_array_equal(loaded["users"], ids, strict=True)
    assert os.listdir(tmp_path) == ["per_user.npz"]


def test_savez_adds_no_suffix_and_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    for name in ("one", "two"):
        files.atomic_savez(tmp_path / name, a=np.arange(3))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_savez_refuses_objects_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "per_user.npz"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="allow_pickle"):
        files.atomic_savez(path, users=np.array([object()]))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["per_user.npz"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, code: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    path = tmp_path / "results.json"
    path.write_text("old")
    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(UserError, match=r"results\.json: cannot write, disk full") as caught:
        files.atomic_write_text(path, "new")
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["results.json"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_write_error_of_the_system_is_explained() -> None:
    with (
        pytest.raises(UserError, match="disk full"),
        files.write_errors("/dev/full"),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"x")


def test_a_place_that_refuses_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere/a: cannot write \(No such file"):
        files.atomic_write_text(tmp_path / "nowhere" / "a", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder: cannot write \(Is a directory"):
        files.atomic_write_text(tmp_path / "folder", "")
    assert os.listdir(tmp_path) == ["folder"]


def test_other_failures_pass_and_leave_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.atomic_write_text(tmp_path / "a", "")
    assert os.listdir(tmp_path) == []

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="Input/output"):
        files.atomic_write_text(tmp_path / "a", "")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "JSON is expected"),
        (b"[1]", "a JSON object is expected"),
        (b"\xff", "JSON is expected"),
        (b"[" * 100_000, "JSON is expected"),
    ],
)
def test_what_is_no_json_object(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "a.json"
    assert files.read_json(path) is None
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: {expected}"):
        files.read_json(path)
    path.write_bytes(b'{"a": [1]}')
    assert files.read_json(path) == {"a": [1]}


def test_what_is_no_archive_of_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    assert files.read_arrays(path) == {}
    files.atomic_savez(path, a=np.arange(300), b=np.eye(9))
    whole = path.read_bytes()
    assert sorted(files.read_arrays(path)) == ["a", "b"]
    np.save(tmp_path / "array.npy", np.arange(3))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    others = [(tmp_path / f"{name}.npy").read_bytes() for name in ("array", "objects")]
    for content in (b"", whole[:300], whole[:-5], b"PK" + whole[2:90], *others):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"^{path}: arrays in .npz form are expected"):
            files.read_arrays(path)


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in ("there", "not yet"):
        (tmp_path / name).symlink_to(f"elsewhere/{name}")
    (tmp_path / "elsewhere" / "there").write_text("old")
    for name in ("there", "not yet"):
        files.atomic_write_text(files.followed(tmp_path / name), "new")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "elsewhere" / name).read_text() == "new"
    (tmp_path / "lost").symlink_to("gone/file")
    with pytest.raises(UserError, match=r"/gone/file: cannot write \(No such file"):
        files.atomic_write_text(files.followed(tmp_path / "lost"), "new")
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "lost", "not yet", "there"]
    assert sorted(os.listdir(tmp_path / "elsewhere")) == ["not yet", "there"]


def test_a_file_of_a_run_takes_the_place_of_a_link(tmp_path: Path) -> None:
    """So that a copy of a run that is made of links leaves the run as it is."""
    (tmp_path / "whole").write_text("old")
    (tmp_path / "copy").symlink_to("whole")
    files.atomic_write_text(tmp_path / "copy", "new")
    assert (tmp_path / "whole").read_text() == "old"
    assert (tmp_path / "copy").read_text() == "new"
    assert not (tmp_path / "copy").is_symlink()


def test_a_file_needs_a_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "file")
    (tmp_path / "file").touch()
    files.require_place("--out", tmp_path / "file")
    files.require_place("--out", tmp_path / "new")
    for name, said in (
        ("", "is a directory, a file is expected"),
        ("link", f"cannot write ({tmp_path}/gone is no directory)"),
        ("file/below", f"cannot write ({tmp_path}/file is no directory)"),
    ):
        with pytest.raises(UserError) as caught:
            files.require_place("--out", tmp_path / name)
        assert str(caught.value) == f"--out: {tmp_path / name}: {said}"


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(UserError, match="the name of a file is expected"):
        files.atomic_write_text(name, "")


def test_what_the_system_does_not_let_read(tmp_path: Path) -> None:
    refused = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with pytest.raises(UserError, match="a: cannot be read"), files.read_errors(Path("a")):
        raise refused


class TestReplacingADirectory:
    @pytest.fixture
    def two(self, tmp_path: Path) -> tuple[Path, Path]:
        """A new directory, as its maker names it, and the old one, whose name is a pattern too."""
        new, old = tmp_path / ".a[b]*.12.tmp", tmp_path / "a[b]*"
        for place, text in ((new, "new"), (old, "old")):
            place.mkdir()
            (place / "x").write_text(text)
        return new, old

    def killed(self, new: Path, old: Path, exchanging: bool) -> None:
        """Replaces in a process that ends, as by a kill, at its second rename by `os.replace`."""
        code = (
            "import os, sys\nfrom pathlib import Path\nfrom pdrec_jax import files\n"
            "renames, whole = [], os.replace\n"
            "def replace(*given):\n"
            "    renames.append(given)\n"
            "    if len(renames) == 2:\n        os._exit(9)\n"
            "    whole(*given)\n"
            "os.replace = replace\n"
            f"if not {exchanging}:\n    files._exchange = lambda *_: False\n"
            "files.replace_directory(*map(Path, sys.argv[1:]))\n"
        )
        subprocess.run([sys.executable, "-c", code, new, old], check=exchanging, timeout=300)

    def test_a_kill_leaves_one_of_the_two(self, two: tuple[Path, Path], tmp_path: Path) -> None:
        new, old = two
        (tmp_path / "p").mkdir()
        (tmp_path / "q").mkdir()
        if not files._exchange(tmp_path / "p", tmp_path / "q"):
            pytest.skip("needs a system that can exchange names")
        self.killed(new, old, exchanging=True)
        assert (old / "x").read_text() == "new"
        assert sorted(os.listdir(tmp_path)) == ["a[b]*", "p", "q"]

    def test_what_a_kill_left_beside_it_is_found(
        self, two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        new, old = two
        self.killed(new, old, exchanging=False)
        assert sorted(os.listdir(tmp_path)) == [new.name, f"{new.name}.old"]
        other = tmp_path / ".a[b]*.34.tmp"
        other.mkdir()
        (other / "x").write_text("other")
        with monkeypatch.context() as patch:
            patch.setattr(files, "_exchange", lambda *_: False)
            renames = []

            def replace(*given: Path) -> None:
                renames.append(given)
                if len(renames) == 3:
                    raise OSError(errno.EIO, "Input/output error")
                os.rename(*given)

            patch.setattr(os, "replace", replace)
            with pytest.raises(OSError, match="Input/output"):
                files.replace_directory(other, old)
        assert (old / "x").read_text() == "old"
        assert sorted(os.listdir(tmp_path)) == [other.name, old.name]
        files.replace_directory(other, old)
        assert (old / "x").read_text() == "other"
        assert os.listdir(tmp_path) == [old.name]

    def test_one_that_is_missing_or_empty(self, two: tuple[Path, Path], tmp_path: Path) -> None:
        new, old = two
        files.replace_directory(new, tmp_path / "b")
        (tmp_path / "empty").mkdir()
        files.replace_directory(tmp_path / "b", tmp_path / "empty")
        assert sorted(os.listdir(tmp_path)) == [old.name, "empty"]
        assert (tmp_path / "empty" / "x").read_text() == "new"


def test_a_place_within_a_run(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    (run / "phases").mkdir(parents=True)
    (tmp_path / "link").symlink_to(run)
    (run / "away.csv").symlink_to(tmp_path / "away.csv")
    for out in ("runs/a", "runs/a/x.csv", "link/x.csv", "runs/b/../a/no/x.csv", "runs/a/away.csv"):
        with pytest.raises(
            UserError, match=r"^--out: .*: is within the run .*/a; name a place out"
        ):
            files.require_outside("--out", tmp_path / out, run)
    with pytest.raises(UserError, match=r"^--out: .*: holds the run .*/a; name a place beside it$"):
        files.require_outside("--out", tmp_path / "runs", run)
    for out in ("x.csv", "runs/x.csv", "runs/ab", "runs/a.csv"):
        files.require_outside("--out", tmp_path / out, run)
