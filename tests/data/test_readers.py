"""Readers: files that are no logs at all, finding and naming of files, and the real logs."""

import datetime
import gzip
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from pdrec_jax.data.readers import SUFFIXES, find_log, read_log, sha256
from pdrec_jax.errors import UserError

HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"
ROWS = "1\t7\t10\n1\t5\t20\n2\t7\t5\n"


class TestBadFiles:
    def test_missing(self, tmp_path, complaint):
        for suffix in SUFFIXES:
            assert complaint(tmp_path / f"none{suffix}") == "no such file"

    def test_directory(self, tmp_path, complaint):
        for suffix in SUFFIXES:
            path = tmp_path / f"folder{suffix}"
            path.mkdir()
            assert complaint(path) == "is a directory, a file is expected"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_forbidden(self, write, complaint):
        path = write("log.csv", "x")
        path.chmod(0)
        assert complaint(path) == "cannot be read (Permission denied)"

    @pytest.mark.parametrize("name", ["log.txt", "log", "log.gz", "log.inter.zip", "inter"])
    def test_unknown_suffix(self, write, complaint, name):
        assert complaint(write(name, HEADER)).startswith("unknown suffix, one of .csv, .csv.gz, ")

    def test_bad_options(self, write):
        path = write("log.inter", HEADER + ROWS)
        with pytest.raises(UserError, match=r"^ids: 'any' or 'integer' is expected, not 'int'$"):
            read_log(path, ids="int")
        with pytest.raises(UserError, match=r"^columns: different names are expected"):
            read_log(path, user="item_id")


def test_pyarrow_is_imported_only_to_read():
    # A run on simulated data has no use for it, and the import takes longer than the simulation.
    code = "import sys, pdrec_jax.data.readers; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestFiles:
    def test_sha256(self, write):
        empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        assert sha256(write("empty", "")) == empty

    def test_sha256_of_nothing(self, tmp_path):
        with pytest.raises(UserError, match=r"no such file$"):
            sha256(tmp_path / "none")
        with pytest.raises(UserError, match=r"is a directory, a file is expected$"):
            sha256(tmp_path)

    def test_find_log(self, tmp_path):
        first, second = tmp_path / "first", tmp_path / "second"
        first.mkdir()
        second.mkdir()
        (second / "log.inter.gz").touch()
        (second / "log.csv").touch()
        (first / "log.parquet").mkdir()
        places = [None, "", tmp_path / "none", first, str(second)]
        assert find_log("log", places) == second / "log.inter.gz"
        assert find_log("log.csv", places) == second / "log.csv"
        assert find_log("other", places) is None
        (first / "log.tsv").touch()
        assert find_log("log", places) == first / "log.tsv"


def days(text: str) -> float:
    return datetime.datetime.fromisoformat(f"{text}T00:00:00+00:00").timestamp()


REAL = {
    "toy": {
        "sha256": "1fb495cd346d104359f1afb75bd6e345daf88edca07dadad4b64baa91b72b677",
        "sizes": (7996, 37868, 114487),
        "span": ("2000-11-20", "2018-09-27"),
        "lengths": (3, 8, 14.3, 480),
        "repeated": (3651, 3415),
        "last_two_share_a_day": 3508,
        "items_with_one_record": 17400,
        "longer_than_200": 16,
    },
    "game": {
        "sha256": "78b6be7f5cb2a68e493c115f3595ec2049c760bc5df9f537608db94fa161411c",
        "sizes": (7996, 11735, 82871),
        "span": ("2000-10-28", "2018-10-02"),
        "lengths": (3, 7, 10.4, 615),
        "repeated": (3700, 3614),
        "last_two_share_a_day": 3256,
        "items_with_one_record": 2443,
        "longer_than_200": 5,
    },
}


@pytest.mark.parametrize("name", ["toy", "game"])
def test_real_logs(real_data, events, name):
    path, known = find_log(f"amazon_{name}", [real_data]), REAL[name]
    assert sha256(path) == known["sha256"]
    log = read_log(path, ids="integer")
    assert (log.num_users, log.num_items, log.num_events) == known["sizes"]
    assert np.array_equal(log.user_ids, np.arange(1, log.num_users + 1))
    assert np.array_equal(log.item_ids, np.arange(log.num_items + 1))
    assert (log.times.min(), log.times.max()) == tuple(map(days, known["span"]))
    assert not (log.times % 86_400).any()
    lengths = log.lengths
    shape = (lengths.min(), np.median(lengths), round(lengths.mean(), 1), lengths.max())
    assert shape == known["lengths"]

    pairs = list(zip(log.event_users.tolist(), log.items.tolist(), strict=True))
    repeated = len(pairs) - len(set(pairs))
    seen, same_day = set(), 0
    for pair, time in zip(pairs, log.times.tolist(), strict=True):
        same_day += (*pair, time) in seen
        seen.add((*pair, time))
    assert (repeated, same_day) == known["repeated"]
    ends = log.offsets[1:]
    assert (log.times[ends - 1] == log.times[ends - 2]).sum() == known["last_two_share_a_day"]
    assert (np.bincount(log.items)[1:] == 1).sum() == known["items_with_one_record"]
    assert (lengths > 200).sum() == known["longer_than_200"]
    with gzip.open(path, "rt") as lines:
        rows = [tuple(map(int, line.split("\t"))) for line in itertools.islice(lines, 1, None)]
    assert [(user, item, int(time)) for user, item, time in events(log)] == rows
