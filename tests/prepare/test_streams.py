"""Files are unpacked on the way, and their suffix tells how."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrec_jax.errors import UserError
from pdrec_jax.prepare.streams import Unpacked, UnpackedText, split_suffix


def test_suffixes() -> None:
    assert split_suffix(Path("a/b.CSV.GZ")) == (".csv", "gzip")
    assert split_suffix(Path("b.jsonl.zst")) == (".jsonl", "zstd")
    assert split_suffix(Path("b.parquet")) == (".parquet", None)
    for name in ("log", "log.txt", "log.gz", "log.parquet.gz", "csv"):
        with pytest.raises(UserError, match=r": unknown suffix, one of \.inter, \.csv, "):
            split_suffix(Path(name))


def test_progress_is_that_of_the_packed_file(tmp_path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"abc" * 1000))
    told: list[int] = []
    with Unpacked(path, "gzip", told.append) as stream:
        assert stream.read(5) == b"abcab"
        assert stream.readall() == (b"abc" * 1000)[5:]
        assert stream.read(5) == b""
    assert sum(told) == path.stat().st_size


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("streams") / "text"


@given(st.lists(st.text() | st.binary()), st.integers(4, 9))
def test_bytes_that_are_no_text_become_nuls(path, parts, size) -> None:
    content = b"".join(
        part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part for part in parts
    )
    path.write_bytes(content)
    read = []
    with UnpackedText(path, None, lambda _: None) as stream:
        while chunk := stream.read(size):
            assert len(chunk) <= size
            read.append(chunk)
    text = content.decode("utf-8", "surrogateescape")
    assert b"".join(read).decode() == "".join(
        "\0" if "\udc80" <= character <= "\udcff" else character for character in text
    )
    assert sum(map(len, read)) == len(content)
