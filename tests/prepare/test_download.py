"""Downloads from a server in this process that cuts, refuses and lies."""

import contextlib
import hashlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pdrec_jax.errors import UserError
from pdrec_jax.locks import locked
from pdrec_jax.prepare.download import Patience, checksum_note, fetch, require_checksum
from pdrec_jax.prepare.origins import Remote

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def patience(waits) -> Patience:
    return Patience(attempts=3, timeout=5.0, sleep=waits.append)


@pytest.fixture
def remote(server) -> Remote:
    server.files["data.bin"] = CONTENT
    return Remote("data.bin", (f"{server.url}/data.bin",), SHA256)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file(remote, server, tmp_path, patience, capsys) -> None:
    path = fetch(remote, tmp_path / "new" / "folder", patience)
    assert path == tmp_path / "new" / "folder" / "data.bin"
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["data.bin"]
    assert "download data.bin: 1,000/1,000 KiB" in capsys.readouterr().err
    assert fetch(remote, path.parent, patience) == path
    assert len(server.requests) == 1


def test_a_cut_connection_is_continued(remote, server, tmp_path, patience, waits) -> None:
    server.cuts = [300_000, 200_000, 1]
    assert fetch(remote, tmp_path, patience).read_bytes() == CONTENT
    ranges = [asked for _, asked in server.requests]
    assert ranges == [None, "bytes=300000-", "bytes=500000-", "bytes=500001-"]
    assert waits == [1.0, 1.0, 1.0]
    assert names(tmp_path) == ["data.bin"]


def test_a_part_may_be_shorter_than_what_was_asked_for(remote, server, tmp_path, patience) -> None:
    server.cuts, server.most = [300_000], 400_000
    assert fetch(remote, tmp_path, patience).read_bytes() == CONTENT
    ranges = [asked for _, asked in server.requests]
    assert ranges == [None, "bytes=300000-", "bytes=700000-"]
    # Nor is it taken for all of a file of which no checksum is known.
    server.cuts, unknown = [300_000], Remote("data.bin", remote.urls, None)
    assert fetch(unknown, tmp_path / "b", patience).read_bytes() == CONTENT


@pytest.mark.parametrize("length", ["\u00b2", "9" * 5000, "-1"])
def test_a_length_that_is_none(remote, server, tmp_path, patience, length) -> None:
    server.length = length
    found = "found"
    try:
        fetch(remote, tmp_path, patience)
    except UserError as error:
        found = str(error)
    assert "\n" not in found


def test_a_later_call_continues(remote, server, tmp_path, waits) -> None:
    server.cuts = [300_000]
    with pytest.raises(UserError, match=r"the connection ended after 300,000 of 1,024,000 bytes"):
        fetch(remote, tmp_path, Patience(attempts=0, sleep=waits.append))
    assert names(tmp_path) == [".data.bin.part", ".data.bin.part.version"]
    fetch(remote, tmp_path)
    assert server.requests[-1] == ("/data.bin", "bytes=300000-")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert names(tmp_path) == ["data.bin"]


def test_a_server_without_parts_sends_all_again(remote, server, tmp_path, patience) -> None:
    server.ranges = False
    server.cuts = [300_000]
    assert fetch(remote, tmp_path, patience).read_bytes() == CONTENT


def test_a_server_without_versions_is_asked_for_all_again(
    remote, server, tmp_path, patience
) -> None:
    server.tags = False
    server.cuts = [300_000]
    assert fetch(remote, tmp_path, patience).read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, None]


def test_a_file_that_changes_meanwhile_is_not_mixed(remote, server, tmp_path, patience) -> None:
    server.cuts = [300_000]
    changed = Remote(remote.name, remote.urls, None)
    with pytest.raises(UserError, match="the connection ended"):
        fetch(changed, tmp_path, Patience(attempts=0, sleep=lambda _: None))
    server.files["data.bin"] = new = b"new" * 200_000
    assert fetch(changed, tmp_path, patience).read_bytes() == new


def test_a_part_that_is_longer_than_the_file(remote, server, tmp_path, patience) -> None:
    (tmp_path / ".data.bin.part").write_bytes(CONTENT + b"more")
    (tmp_path / ".data.bin.part.version").write_text(f'"{hash(CONTENT)}"')
    assert fetch(remote, tmp_path, patience).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_a_part_that_is_all_of_the_file(remote, server, tmp_path, patience) -> None:
    def kept(content: bytes) -> None:
        (tmp_path / ".data.bin.part").write_bytes(content)
        (tmp_path / ".data.bin.part.version").write_text(f'"{hash(CONTENT)}"')

    kept(CONTENT)
    assert fetch(remote, tmp_path, patience).read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == ["bytes=1024000-"]
    assert names(tmp_path) == ["data.bin"]
    (tmp_path / "data.bin").unlink()
    kept(bytes(len(CONTENT)))
    with pytest.raises(UserError, match=r"wrong checksum: .*; nothing was kept"):
        fetch(remote, tmp_path, patience)
    assert names(tmp_path) == []
    kept(CONTENT)
    server.lengths, server.requests = False, []
    assert fetch(remote, tmp_path, patience).read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == ["bytes=1024000-", None]


def test_a_server_that_never_comes_to_the_end(remote, server, tmp_path, patience, waits) -> None:
    server.ranges = False
    server.cuts = [200_000, 300_000, 100_000, 250_000, 150_000, *range(1000, 2000, 10)]
    with pytest.raises(UserError, match=r"the connection ended after 150,000 of .*, 3 times"):
        fetch(remote, tmp_path, patience)
    assert len(server.requests) == 5


def test_a_wrong_checksum(remote, server, tmp_path, patience) -> None:
    server.files["data.bin"] = b"something else"
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(UserError) as caught:
        fetch(remote, tmp_path, patience)
    assert str(caught.value) == (
        f"{server.url}/data.bin: wrong checksum: SHA-256 {SHA256} is expected, found {found}; "
        "nothing was kept"
    )
    assert names(tmp_path) == []
    path = fetch(remote, tmp_path, patience, verify=False)
    assert path.read_bytes() == b"something else"
    note = f"data.bin: accepted unverified, SHA-256 {found}"
    assert checksum_note(path, remote, verify=False) == note


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_that_cannot_be_seen(remote, server, tmp_path, patience, waits, ranges) -> None:
    server.sizes, server.ranges = False, ranges
    server.cuts = [300_000, 200_000]
    assert fetch(remote, tmp_path, patience).read_bytes() == CONTENT
    # What a server without parts sent is there to be asked for, and sent anew.
    assert server.requests[2][1] == ("bytes=500000-" if ranges else "bytes=200000-")
    assert names(tmp_path) == ["data.bin"]


@pytest.mark.parametrize(("tags", "requests"), [(True, 2), (False, 4)])
def test_another_file_of_no_named_length(
    remote, server, tmp_path, patience, waits, tags, requests
) -> None:
    server.files["data.bin"] = b"something else"
    server.sizes, server.tags = False, tags
    with pytest.raises(UserError, match=r"wrong checksum: SHA-256 .*; nothing was kept$"):
        fetch(remote, tmp_path, patience)
    # With a version the rest is asked for, of which there is none.
    assert len(server.requests) == requests
    assert names(tmp_path) == []


def test_after_a_wrong_checksum_the_next_address_is_tried(
    remote, server, tmp_path, patience
) -> None:
    server.files["page"] = b"<html>come back later"
    page = f"{server.url}/page"
    both = Remote(remote.name, (page, *remote.urls), SHA256)
    assert fetch(both, tmp_path, patience).read_bytes() == CONTENT
    neither = Remote(remote.name, (page, f"{server.url}/none"), SHA256)
    with pytest.raises(UserError, match=r"page: wrong checksum: .*; .*none: status 404.* by hand$"):
        fetch(neither, tmp_path / "other", patience)
    assert names(tmp_path / "other") == []


def test_a_command_that_downloads_into_the_folder_is_waited_for(
    remote, server, tmp_path, capsys
) -> None:
    with contextlib.ExitStack() as other:
        other.enter_context(locked(tmp_path))

        def sleep(seconds: float) -> None:
            assert (seconds, server.requests) == (1.0, [])
            (tmp_path / "data.bin").write_bytes(CONTENT)
            other.close()

        assert fetch(remote, tmp_path, Patience(sleep=sleep)).read_bytes() == CONTENT
    assert server.requests == []
    assert names(tmp_path) == ["data.bin"]
    assert capsys.readouterr().err == (
        f"warning: {tmp_path}: another command downloads into it, which is waited for\n"
    )


def test_two_at_once(remote, server, tmp_path) -> None:
    patience = Patience(attempts=1, sleep=lambda _: time.sleep(0.01))
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: fetch(remote, tmp_path, patience), range(2)))
    assert paths == [tmp_path / "data.bin"] * 2
    assert paths[0].read_bytes() == CONTENT
    assert len(server.requests) == 1
    assert names(tmp_path) == ["data.bin"]


def test_a_file_at_hand_is_checked_too(remote, server, tmp_path, patience) -> None:
    (tmp_path / "data.bin").write_bytes(b"old")
    with pytest.raises(UserError, match=r"data\.bin: wrong checksum: .* --unverified$"):
        fetch(remote, tmp_path, patience)
    assert fetch(remote, tmp_path, patience, verify=False).read_bytes() == b"old"
    assert server.requests == []


def test_the_name_of_a_git_object_is_a_checksum(server, tmp_path, patience) -> None:
    # `printf 'hello\n' | git hash-object --stdin` says so, and the book "Pro Git" too.
    known = "ce013625030ba8dba906f756967f9e9ca394464a"
    server.files["x"] = b"hello\n"
    remote = Remote("x", (f"{server.url}/x",), None, known)
    path = fetch(remote, tmp_path, patience)
    assert path.read_bytes() == b"hello\n"
    assert checksum_note(path, remote, verify=True) is None
    require_checksum(path, remote)
    path.write_bytes(b"hullo\n")
    with pytest.raises(UserError, match=f"Git object {known} is expected, found [0-9a-f]{{40}};"):
        require_checksum(path, remote)
    assert "accepted unverified, SHA-256" in (checksum_note(path, remote, verify=False) or "")
    path.unlink()
    server.files["x"] = b"hullo\n"
    with pytest.raises(UserError, match=f"wrong checksum: Git object {known} is expected, found "):
        fetch(remote, tmp_path, patience)
    assert names(tmp_path) == []


def test_an_unknown_checksum_is_reported(server, tmp_path, patience) -> None:
    server.files["x"] = b"x"
    remote = Remote("x", (f"{server.url}/x",), None)
    path = fetch(remote, tmp_path, patience)
    found = hashlib.sha256(b"x").hexdigest()
    expected = f"x: no checksum is on record, found SHA-256 {found}"
    assert checksum_note(path, remote, verify=True) == expected
    assert checksum_note(path, Remote("x", (), found), verify=True) is None
    require_checksum(path, Remote("x", (), found))


def test_not_there(server, tmp_path, patience, waits) -> None:
    remote = Remote("none", (f"{server.url}/none",), None)
    with pytest.raises(UserError) as caught:
        fetch(remote, tmp_path, patience)
    assert str(caught.value) == (
        f"none: cannot be downloaded ({server.url}/none: status 404 Not Found); "
        f"put the file at {tmp_path / 'none'} by hand"
    )
    assert (waits, len(server.requests)) == ([], 1)


def test_the_next_address_is_tried(remote, server, tmp_path, patience) -> None:
    both = Remote("data.bin", (f"{server.url}/none", *remote.urls), SHA256)
    assert fetch(both, tmp_path, patience).read_bytes() == CONTENT


def test_a_busy_server_is_waited_for(remote, server, tmp_path, patience, waits) -> None:
    server.statuses = [503, 429]
    assert fetch(remote, tmp_path, patience).read_bytes() == CONTENT
    assert waits == [1.0, 2.0]
    server.statuses = [500] * 3
    with pytest.raises(UserError, match="status 500, 3 times"):
        fetch(Remote("data.bin", remote.urls, None), tmp_path / "other", patience)


def test_a_silent_server_is_given_up(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        patience = Patience(attempts=2, timeout=0.05, sleep=lambda _: None)
        with pytest.raises(UserError, match="no answer in time, 2 times"):
            fetch(Remote("x", (url,), None), tmp_path, patience)


def test_no_server(tmp_path, patience) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/x"
    with pytest.raises(UserError, match=r"refused, 3 times"):
        fetch(Remote("x", (url,), None), tmp_path, patience)


def test_no_address(tmp_path) -> None:
    with pytest.raises(UserError, match=r"x: no such file, and no address to download it from$"):
        fetch(Remote("x", (), None), tmp_path)


def test_a_folder_that_is_a_file(remote, tmp_path, patience) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot write"):
        fetch(remote, tmp_path / "file", patience)
