"""The whole way from published files to the paper's logs, on small pairs and on the real one."""

import dataclasses
import errno
import gzip
import hashlib
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pdrec_jax.data.interactions import Interactions
from pdrec_jax.data.readers import read_log
from pdrec_jax.errors import UserError
from pdrec_jax.prepare import public
from pdrec_jax.prepare.download import Patience
from pdrec_jax.prepare.origins import AMAZON, DOUBAN, PAIRS, Domain, Pair, Pickles, Remote
from pdrec_jax.prepare.public import prepare_pair
from pdrec_jax.prepare.reference import read_pair


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def text(log: dict, time: str = "timestamp") -> bytes:
    """The `.inter` file that a log of (item, time) a user should become."""
    rows = "".join(f"{u}\t{i}\t{t}\n" for u, of in sorted(log.items()) for i, t in of)
    return f"user_id:token\titem_id:token\t{time}:float\n{rows}".encode()


def domain(name: str, log: dict) -> Domain:
    items = {item for rows in log.values() for item, _ in rows}
    return Domain(name, len(log), len(items), sum(map(len, log.values())), sha256(text(log)))


@pytest.fixture
def published(pair_pickles, simulated_pair, server, tmp_path) -> SimpleNamespace:
    """`simulated_pair` on a server, and what is known of it."""
    remotes = []
    for path in pair_pickles(*simulated_pair):
        content = path.read_bytes()
        server.files[path.name] = content
        remotes.append(Remote(path.name, (f"{server.url}/{path.name}",), sha256(content)))
    first, second = simulated_pair
    pair = Pair(domain("one", first), domain("two", second), Pickles(*remotes), ((), ()), 3)

    def make(**options) -> str:
        options = {"downloads": tmp_path / "down", "pairs": {"pair": pair}, **options}
        patience = Patience(attempts=1, sleep=lambda _: None)
        return prepare_pair("pair", tmp_path / "out", patience=patience, **options)

    logs = read_pair(*pair_pickles(*simulated_pair, mixed_times=False), None)
    order = sha256(logs[1].text())
    return SimpleNamespace(
        pair=pair, make=make, out=tmp_path / "out", down=tmp_path / "down", order=order
    )


class TestPickles:
    def test_downloaded(self, published, simulated_pair) -> None:
        said = published.make()
        for name, log in zip(("one", "two"), simulated_pair, strict=True):
            content = (published.out / f"{name}.inter.gz").read_bytes()
            assert gzip.decompress(content) == text(log)
            assert f"{name}.inter.gz: 40 users, " in said
            assert f"content SHA-256 {sha256(text(log))}\n" in said
        assert "note" not in said
        assert sorted(path.name for path in published.out.iterdir()) == [
            "one.inter.gz",
            "two.inter.gz",
        ]

    def test_is_read_by_the_main_job(self, published) -> None:
        published.make()
        log = read_log(published.out / "two.inter.gz", ids="integer")
        wanted = published.pair.second
        assert (log.num_users, log.num_items, log.num_events) == (40, wanted.items, wanted.records)

    def test_a_pair_of_which_one_log_is_empty(self, pair_pickles, simulated_pair, tmp_path) -> None:
        first, second = simulated_pair
        paths = pair_pickles(first, {user: [] for user in second})
        remotes = [Remote(path.name, (path.as_uri(),), "") for path in paths]
        pair = Pair(domain("one", first), domain("two", second), Pickles(*remotes), ((), ()), 3)
        for path in paths:
            (tmp_path / "down").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "down")
        with pytest.raises(UserError, match=r"^two: no records are left of its log$"):
            prepare_pair(
                "pair",
                tmp_path / "out",
                downloads=tmp_path / "down",
                pairs={"pair": pair},
                verify=False,
            )
        assert not (tmp_path / "out").exists()

    def test_the_same_content_is_the_same_file(self, published) -> None:
        published.make()
        before = (published.out / "one.inter.gz").read_bytes()
        published.make(overwrite=True)
        assert (published.out / "one.inter.gz").read_bytes() == before

    def test_a_log_in_the_way(self, published) -> None:
        published.make()
        with pytest.raises(UserError, match=r"one\.inter\.gz: is there; .* add --overwrite$"):
            published.make()

    def test_half_a_pair_is_not_left_where_the_other_half_cannot_be_written(
        self, published, monkeypatch
    ) -> None:
        published.make()
        before = (published.out / "two.inter.gz").read_bytes()
        shutil.rmtree(published.out)
        fails = iter((False, True))

        def fsync(_: int) -> None:
            if next(fails):
                raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            with pytest.raises(UserError, match=r"two\.inter\.gz: cannot write, disk full"):
                published.make()
        assert list(published.out.iterdir()) == []
        published.make()
        assert (published.out / "two.inter.gz").read_bytes() == before

    def test_half_a_pair_that_a_killed_command_left_is_completed(self, published) -> None:
        published.make()
        first, second = (published.out / f"{name}.inter.gz" for name in ("one", "two"))
        before = second.read_bytes()
        second.unlink()
        published.make()
        assert second.read_bytes() == before
        second.unlink()
        # As versions wrote it that left the system in its head.
        whole = first.read_bytes()
        first.write_bytes(whole[:9] + b"\3" + whole[10:])
        published.make()
        assert (first.read_bytes(), second.read_bytes()) == (whole, before)
        first.unlink()
        second.write_bytes(b"mine")
        with pytest.raises(UserError, match=r"two\.inter\.gz: is there; .* add --overwrite$"):
            published.make()
        assert list(published.out.iterdir()) == [second]
        assert second.read_bytes() == b"mine"

    def test_a_wrong_checksum(self, published, server) -> None:
        server.files["items.pkl"] += b"x"
        with pytest.raises(UserError, match=r"items\.pkl: wrong checksum"):
            published.make()
        assert not published.out.exists()

    def test_a_pickle_that_calls_something_is_refused(self, published, server) -> None:
        server.files["items.pkl"] = pickle.dumps({1: [print]}, 4)
        with pytest.raises(UserError, match=r"items\.pkl: byte [0-9]+: STACK_GLOBAL is refused"):
            published.make(verify=False)
        assert not published.out.exists()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"users": 41}, r"one: 41 users, .* are expected \(Table 2\), found 40 users, "),
            ({"records": 1}, r"one: 40 users, .* are expected \(Table 2\), found 40 users, "),
            ({"sha256": "0" * 64}, r"one: content of SHA-256 0{64} is expected, found "),
        ],
    )
    def test_what_is_not_table_2(self, published, change, message) -> None:
        pair = dataclasses.replace(
            published.pair, first=dataclasses.replace(published.pair.first, **change)
        )
        with pytest.raises(UserError, match=message):
            published.make(pairs={"pair": pair})
        assert not published.out.exists()
        said = published.make(pairs={"pair": pair}, verify=False)
        assert ("note: one: Table 2 has" in said) == ("sha256" not in change)

    def test_times_that_are_not_needed(self, published, server) -> None:
        pickles = dataclasses.replace(published.pair.pickles, times_needed=False)
        pair = dataclasses.replace(published.pair, pickles=pickles)
        said = published.make(pairs={"pair": pair}, verify=False)
        assert "note: two: its column 'order' holds the order of the records" in said
        assert "weigh by position" not in said
        path = published.out / "two.inter.gz"
        timed = [read_log(path, time=time, ids="integer") for time in ("timestamp", "order")]
        assert np.array_equal(timed[0].items, timed[1].items)

        # The same content with the times and without them has the one checksum.
        without = dataclasses.replace(pair.second, sha256=published.order)
        pair = dataclasses.replace(pair, second=without)
        published.make(pairs={"pair": pair}, overwrite=True)
        assert b"timestamp" in gzip.decompress(path.read_bytes())

        (published.down / "mixed_times.pkl").unlink()
        del server.files["mixed_times.pkl"]
        said = published.make(pairs={"pair": pair}, overwrite=True)
        assert re.search(r"note: without mixed_times\.pkl: .*: status 404.* by hand", said)
        assert "; its times are not at hand, so weigh by position" in said
        log = read_log(path, time="order", ids="integer")
        assert log.times.tolist() == timed[1].times.tolist()
        with pytest.raises(UserError, match="timestamp"):
            read_log(path, ids="integer")

    def test_times_that_are_not_needed_may_be_damaged(self, published, server) -> None:
        pickles = published.pair.pickles
        damaged = pickle.dumps({user: [1] for user in range(1, 41)}, protocol=4)
        server.files["mixed_times.pkl"] = damaged
        for known, problem in (
            (pickles.mixed_times.sha256, "wrong checksum"),
            (sha256(damaged), "has not as many records as in"),
        ):
            remote = dataclasses.replace(pickles.mixed_times, sha256=known)
            files = dataclasses.replace(pickles, mixed_times=remote, times_needed=False)
            pair = dataclasses.replace(published.pair, pickles=files)
            order = dataclasses.replace(pair.second, sha256=published.order)
            pair = dataclasses.replace(pair, second=order)
            said = published.make(pairs={"pair": pair}, overwrite=True)
            assert re.search(rf"note: without mixed_times\.pkl: .*{problem}", said)


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Callable[..., str]:
    """`raw(pair_name, **options)` prepares from files in `down`; no address works."""
    unreachable = {
        name: dataclasses.replace(
            pair,
            raw=tuple(
                tuple(dataclasses.replace(remote, urls=()) for remote in choices)
                for choices in pair.raw
            ),
        )
        for name, pair in PAIRS.items()
    }
    monkeypatch.setattr(public, "DOUBAN_ZIP", dataclasses.replace(public.DOUBAN_ZIP, urls=()))

    def raw(name: str, **options) -> str:
        options = {"downloads": tmp_path / "down", "verify": False, **options}
        return prepare_pair(name, tmp_path / "out", raw=True, pairs=unreachable, **options)

    (tmp_path / "down").mkdir()
    return raw


def ratings(users: str, items: str, start: int) -> list[tuple[str, str, int]]:
    """Every user takes every item, in the order of their names."""
    return [(u, i, start + place) for u in users for place, i in enumerate(items)]


def events(log: Interactions) -> list:
    users, items = log.event_users + 1, log.items
    return list(zip(users.tolist(), items.tolist(), log.times.tolist(), strict=True))


class TestAmazon:
    def check(self, out: Path) -> None:
        toy = read_log(out / "amazon_toy.inter.gz", ids="integer")
        game = read_log(out / "amazon_game.inter.gz", ids="integer")
        # b, c and d are in both; each took x, y, z at 10, 11, 12 and y again at 99.
        expected = [
            row for u in (1, 2, 3) for row in [(u, 1, 10), (u, 2, 11), (u, 3, 12), (u, 2, 99)]
        ]
        assert events(toy) == expected
        assert (game.num_users, game.num_items, game.num_events) == (3, 3, 9)

    @property
    def toys(self) -> list[tuple[str, str, int]]:
        again = [(u, "y", 99) for u in "abcd"]
        return [*again, *ratings("abcd", "xyz", 10), ("b", "rare", 1), ("e", "x", 1)]

    @pytest.mark.parametrize("packed", [False, True])
    def test_ratings(self, raw, tmp_path, packed) -> None:
        files = {"Toys_and_Games": self.toys, "Video_Games": ratings("bcdf", "pqr", 5)}
        for name, rows in files.items():
            content = "".join(f"{i},{u},5.0,{t}\n" for u, i, t in rows).encode()
            path = tmp_path / "down" / f"{name}.csv{'.gz' * packed}"
            path.write_bytes(gzip.compress(content) if packed else content)
        said = raw("amazon")
        self.check(tmp_path / "out")
        assert "note: amazon_toy: Table 2 has 7,996 users, 37,868 items, 114,487 records" in said
        assert said.count("SHA-256") == 4
        if not packed:
            with pytest.raises(UserError, match=r"Toys_and_Games\.csv: wrong checksum"):
                raw("amazon", verify=True, overwrite=True)

    def test_reviews(self, raw, tmp_path) -> None:
        files = {"Toys_and_Games": self.toys, "Video_Games": ratings("bcdf", "pqr", 5)}
        for name, rows in files.items():
            lines = [
                json.dumps({"reviewerID": u, "asin": i, "unixReviewTime": t, "overall": 1.0})
                for u, i, t in rows
            ]
            path = tmp_path / "down" / f"{name}.json.gz"
            path.write_bytes(gzip.compress("\n".join(lines).encode()))
        assert "Toys_and_Games.json.gz: no checksum is on record, found SHA-256" in raw(
            "amazon", verify=True
        )
        self.check(tmp_path / "out")

    def test_no_user_in_common(self, raw, tmp_path) -> None:
        for name, users in (("Toys_and_Games", "abc"), ("Video_Games", "def")):
            rows = ratings(users, "xyz", 10)
            (tmp_path / "down" / f"{name}.csv").write_text(
                "".join(f"{i},{u},5.0,{t}\n" for u, i, t in rows)
            )
        with pytest.raises(UserError, match=r"no user with 3 records in both$"):
            raw("amazon")
        assert not (tmp_path / "out").exists()


class TestDouban:
    def inter(self, rows: list) -> bytes:
        head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        return (head + "".join(f"{u}\t{i}\t4.0\t{t}\n" for u, i, t in rows)).encode()

    @pytest.mark.parametrize("zipped", [False, True])
    def test_files(self, raw, tmp_path, zipped) -> None:
        # g's 201 books are too many; f has no music.
        many = [("g", f"many{n}", n) for n in range(201)]
        books = [*ratings("abcdefg", "stuvw", 10), *many]
        music = ratings("abcdeg", "klmno", 20)
        if zipped:
            with zipfile.ZipFile(tmp_path / "down" / "Douban.zip", "w") as archive:
                archive.writestr("Douban/DoubanBook/DoubanBook.inter", self.inter(books))
                archive.writestr("Douban/DoubanMusic/DoubanMusic.inter", self.inter(music))
        else:
            (tmp_path / "down" / "DoubanBook.inter").write_bytes(self.inter(books))
            packed = gzip.compress(self.inter(music))
            (tmp_path / "down" / "DoubanMusic.inter.gz").write_bytes(packed)
        raw("douban")
        for name in ("douban_book", "douban_music"):
            log = read_log(tmp_path / "out" / f"{name}.inter.gz", ids="integer")
            assert (log.num_users, log.num_items, log.num_events) == (6, 5, 30)

    def test_a_broken_bundle(self, raw, tmp_path) -> None:
        (tmp_path / "down" / "Douban.zip").write_bytes(b"no zip")
        with pytest.raises(UserError, match=r"Douban\.zip: broken zip file"):
            raw("douban")
        with zipfile.ZipFile(tmp_path / "down" / "Douban.zip", "w") as archive:
            archive.writestr("other", b"")
        with pytest.raises(UserError, match=r"one file DoubanBook\.inter is expected in it$"):
            raw("douban")
        assert [path.name for path in (tmp_path / "down").iterdir()] == ["Douban.zip"]

    @pytest.mark.parametrize("damage", ["place", "name"])
    def test_a_bundle_that_is_damaged_inside(self, raw, tmp_path, damage) -> None:
        bundle = tmp_path / "down" / "Douban.zip"
        with zipfile.ZipFile(bundle, "w") as archive:
            archive.writestr("ü/DoubanBook.inter", self.inter([]))
        content = bytearray(bundle.read_bytes())
        if damage == "place":
            # The list of files is said to begin later than it does, and so the file before byte 0.
            content[-6:-2] = (int.from_bytes(content[-6:-2], "little") + 100).to_bytes(4, "little")
        else:
            content[content.rindex("ü".encode())] = 0xFF
        bundle.write_bytes(content)
        with pytest.raises(UserError, match=r"Douban\.zip: broken zip file \(.*\)$"):
            raw("douban")
        assert [path.name for path in (tmp_path / "down").iterdir()] == ["Douban.zip"]


def test_table_2() -> None:
    # Users, items, records and density of the paper's Table 2.
    domains = [AMAZON.first, AMAZON.second, DOUBAN.first, DOUBAN.second]
    densities = [100 * d.records / (d.users * d.items) for d in domains]
    assert [round(density, 4) for density in densities] == [0.0378, 0.0883, 0.1253, 0.1494]


def test_the_real_logs(real_data, pair_pickles, tmp_path) -> None:
    """Pickles of the real content become files of the real content, byte for byte."""
    logs = []
    for name in ("amazon_toy", "amazon_game"):
        log = read_log(real_data / f"{name}.inter.gz", ids="integer")
        found: dict[int, list[tuple[int, int]]] = {int(u): [] for u in log.user_ids}
        users, items = log.user_ids[log.event_users], log.item_ids[log.items]
        for user, item, time in zip(users.tolist(), items.tolist(), log.times, strict=True):
            found[user].append((item, int(time)))
        logs.append(found)
    paths = pair_pickles(*logs)
    remotes = [Remote(path.name, (), None) for path in paths]
    pair = dataclasses.replace(AMAZON, pickles=Pickles(*remotes))
    prepare_pair("amazon", tmp_path / "out", downloads=paths[0].parent, pairs={"amazon": pair})
    for name in ("amazon_toy", "amazon_game"):
        made = gzip.decompress((tmp_path / "out" / f"{name}.inter.gz").read_bytes())
        wanted = gzip.decompress((real_data / f"{name}.inter.gz").read_bytes())
        assert sha256(made) == sha256(wanted)
