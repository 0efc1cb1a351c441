"""What a run keeps of its log: ids are found by their text, and the file is whole or refused."""

from pathlib import Path

import numpy as np
import pytest

from pdrec_jax.data.catalogue import (
    CATALOGUE,
    Catalogue,
    IdIndex,
    catalogue_of,
    load_catalogue,
    save_catalogue,
)
from pdrec_jax.data.domains import merge_domains
from pdrec_jax.data.interactions import from_events
from pdrec_jax.data.splits import leave_one_out, with_source_events
from pdrec_jax.errors import UserError


def catalogue(ids: list, targets: int, **changes) -> Catalogue:
    fields = {
        "item_ids": np.array([ids[0] * 0, *ids]),
        "num_target_items": targets,
        "num_source_items": len(ids) - targets,
        "popularity": np.arange(len(ids) + 1),
        "places": ("/a/log.csv",),
    }
    return Catalogue(**{**fields, **changes})


class TestIdIndex:
    @pytest.mark.parametrize("ids", [[10, 9, -3, 0], ["b", "a b", "ä", "a"]])
    def test_every_id_is_found_where_it_stands(self, ids) -> None:
        index = IdIndex(np.array(ids))
        assert index.find(np.array(ids).astype(str)).tolist() == [0, 1, 2, 3]

    def test_what_is_not_there(self) -> None:
        index = IdIndex(np.array([10, 9]))
        assert index.find(np.array(["1", "010", "zzz", "", "10 "])).tolist() == [-1] * 5
        assert IdIndex(np.array([], str)).find(np.array(["a"])).tolist() == [-1]
        assert index.find(np.array([], str)).tolist() == []


class TestCatalogue:
    def test_items_are_found_in_both_domains_the_target_first(self) -> None:
        both = catalogue(["x", "y", "y", "z"], targets=2)
        assert both.find(np.array(["z", "y", "x", "w"])).tolist() == [4, 2, 1, 0]

    def test_the_most_popular_first_and_ties_by_id(self) -> None:
        counts = np.array([9, 1, 3, 3, 0, 8])
        found = catalogue(["a", "b", "c", "d", "e"], targets=4, popularity=counts).popular
        assert found.tolist() == [2, 3, 1, 4]

    def test_all_events_of_a_split_count(self) -> None:
        users, items = [1, 1, 1, 2, 2, 2, 2], [5, 6, 7, 7, 7, 5, 7]
        made = catalogue_of(leave_one_out(from_events(users, items)), [Path("log.csv")])
        assert made.item_ids.tolist() == [0, 5, 6, 7]
        assert made.popularity.tolist() == [0, 2, 1, 4]
        assert (made.num_target_items, made.num_source_items) == (3, 0)
        assert made.places == (str(Path.cwd() / "log.csv"),)

    def test_events_of_dropped_users_count(self) -> None:
        """They decide what somebody gets of whom nothing is known."""
        users = [0] * 3 + [1] * 3 + list(range(2, 52))
        log = from_events(users, [1, 2, 3, 1, 2, 4] + [9] * 50, np.arange(56))
        made = catalogue_of(leave_one_out(log), None)
        assert made.popularity.tolist() == log.popularity.tolist() == [0, 2, 2, 1, 1, 50]
        assert made.popular[0] == 5
        source = from_events([0, 1, 60], [1, 2, 2], np.zeros(3))
        mixed = catalogue_of(with_source_events(merge_domains(log, source), between=False), None)
        assert mixed.popularity.tolist()[:6] == [0, 2, 2, 1, 1, 50]

    def test_two_domains(self) -> None:
        target = from_events([1, 1, 1, 2, 2, 2], [1, 2, 3, 1, 2, 3], np.arange(6))
        source = from_events([1, 2], [1, 2], np.zeros(2))
        merged = merge_domains(target, source)
        alone = catalogue_of(leave_one_out(merged), None)
        assert (alone.num_items, alone.num_target_items, alone.num_source_items) == (3, 3, 2)
        mixed = catalogue_of(with_source_events(merged, between=False), None)
        assert (mixed.num_items, mixed.num_target_items, mixed.num_source_items) == (5, 3, 2)
        assert (alone.num_shared_ids, mixed.num_shared_ids) == (0, 2)


class TestFile:
    @pytest.mark.parametrize("ids", [[3, 1], ["ä b", "1"]])
    def test_round_trip(self, tmp_path, ids) -> None:
        before = catalogue(ids, 1, places=("/a/b.csv", "/a/ä.csv"))
        save_catalogue(tmp_path, before)
        after = load_catalogue(tmp_path)
        assert after.item_ids.tolist() == before.item_ids.tolist()
        assert after.popularity.tolist() == before.popularity.tolist()
        assert (after.num_target_items, after.num_source_items) == (1, 1)
        assert after.places == before.places

    def test_none(self, tmp_path) -> None:
        with pytest.raises(UserError, match="called once more"):
            load_catalogue(tmp_path)

    def test_broken(self, tmp_path) -> None:
        save_catalogue(tmp_path, catalogue([3, 1], 1))
        whole = (tmp_path / CATALOGUE).read_bytes()
        for data in (b"", whole[:100], whole[: len(whole) // 2], b"nonsense"):
            (tmp_path / CATALOGUE).write_bytes(data)
            with pytest.raises(UserError, match=r"arrays in .npz form are expected"):
                load_catalogue(tmp_path)

    def test_parts_that_do_not_fit(self, tmp_path) -> None:
        save_catalogue(tmp_path, catalogue([3, 1], 1, popularity=np.zeros(2, int)))
        with pytest.raises(UserError, match="do not fit"):
            load_catalogue(tmp_path)
