"""The two protocols: who takes part, and which candidates are drawn."""

import dataclasses
import errno

import numpy as np
import pytest

from pdrec_jax.data import scratch
from pdrec_jax.data.domains import merge_domains
from pdrec_jax.data.interactions import from_events
from pdrec_jax.data.readers import read_log
from pdrec_jax.data.simulator import simulate
from pdrec_jax.data.splits import Split, leave_one_out, with_source_events
from pdrec_jax.errors import UserError
from pdrec_jax.evaluation.protocol import (
    REFERENCE,
    STRICT,
    DrawnCandidates,
    complement,
    draw_candidates,
    get_protocol,
    protocol_of,
    user_sets,
)
from pdrec_jax.settings import default_config

ITEMS = 40


@pytest.fixture(scope="module")
def split() -> Split:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, 25)
    lengths[:2] = 3  # one training event
    items = rng.integers(1, ITEMS + 1, lengths.sum())
    items[-ITEMS:] = np.arange(1, ITEMS + 1)
    return leave_one_out(from_events(np.repeat(np.arange(25), lengths), items))


def history(split: Split, user: int) -> set[int]:
    train = split.train
    return set(train.items[train.offsets[user] : train.offsets[user + 1]].tolist())


class TestProtocols:
    def test_names(self):
        assert get_protocol("strict") is STRICT
        assert get_protocol("reference") is REFERENCE
        with pytest.raises(UserError, match=r"^protocol: .*, got 'loose'$"):
            get_protocol("loose")

    def test_the_choices_of_a_config(self):
        config = default_config()
        for name, own in (("strict", STRICT), ("reference", REFERENCE)):
            config.protocol = name
            assert protocol_of(config) is own
        config.hbr.floor, config.dpa.pool = "observed", "unobserved"
        changed = {"hbr_floor": "observed", "dpa_unobserved": True}
        assert protocol_of(config) == dataclasses.replace(REFERENCE, **changed)
        config.protocol, config.hbr.floor, config.dpa.pool = "strict", "shifted", "all"
        changed = {"hbr_floor": "shifted", "dpa_unobserved": False}
        assert protocol_of(config) == dataclasses.replace(STRICT, **changed)

    def test_they_differ_in_every_choice(self):
        for field in dataclasses.fields(STRICT):
            assert getattr(STRICT, field.name) != getattr(REFERENCE, field.name), field.name


class TestUserSets:
    def test_strict(self, split):
        sets = user_sets(STRICT, split)
        for users in (sets.diffusion, sets.preferences, sets.encoder):
            np.testing.assert_array_equal(users, split.train.lengths >= 2)
        assert not sets.encoder[:2].any()

    def test_reference_on_one_domain(self, split):
        sets = user_sets(REFERENCE, split)
        pair = split.train.lengths >= 2
        np.testing.assert_array_equal(sets.diffusion, pair)
        assert sets.preferences.all()
        np.testing.assert_array_equal(sets.encoder[:-1], pair[:-1])
        assert not sets.encoder[-1]

    def test_reference_on_two_domains(self, split):
        source = np.arange(25) % 3
        sets = user_sets(REFERENCE, _WithSource(split, source))
        pair = split.train.lengths >= 2
        np.testing.assert_array_equal(sets.diffusion, pair & (source >= 2))
        np.testing.assert_array_equal(sets.preferences, source >= 1)
        np.testing.assert_array_equal(sets.encoder[:-1], (pair & (source >= 1))[:-1])

    def test_public_code_on_toy(self, real_data, goldens):
        toy, game = (
            read_log(real_data / f"amazon_{name}.inter.gz", ids="integer")
            for name in ("toy", "game")
        )
        split = leave_one_out(merge_domains(toy, game))
        sets = user_sets(REFERENCE, split)
        assert sets.diffusion.sum() == 6903
        assert sets.preferences.sum() == 7262
        expected = goldens("partition_toy")["eval_user_list"]
        np.testing.assert_array_equal(split.train.user_ids[sets.encoder], np.sort(expected))


@dataclasses.dataclass
class _WithSource:
    """A split whose users have these numbers of source events."""

    split: Split
    source_lengths: np.ndarray

    @property
    def train(self):
        return self.split.train

    @property
    def mixed(self):
        return self.split.train


class TestCandidates:
    @pytest.mark.parametrize("heldout", ["valid", "test"])
    @pytest.mark.parametrize("protocol", [STRICT, REFERENCE])
    def test_what_is_drawn(self, split, protocol, heldout):
        negatives = 20
        tables = [
            draw_candidates(protocol, split, seed, heldout=heldout, negatives=negatives)
            for seed in range(30)
        ]
        positives = split.valid_items if heldout == "valid" else split.test_items
        assert tables[0].dtype == np.int32
        for user in range(25):
            drawn = np.stack([table[user] for table in tables])
            assert (drawn[:, 0] == positives[user]).all()
            assert all(len(set(row)) == negatives for row in drawn[:, 1:].tolist())
            excluded = history(split, user) | {int(split.valid_items[user])}
            if protocol is STRICT and heldout == "test":
                excluded |= {int(split.test_items[user])}
            # 30 draws of 20 of 40: an item that is never drawn is one that cannot be.
            assert set(drawn[:, 1:].ravel().tolist()) == set(range(1, ITEMS + 1)) - excluded

    def test_validation_and_other_seeds_draw_anew(self, split):
        table = draw_candidates(STRICT, split, 4, heldout="test", negatives=5)
        for seed, heldout in ((5, "test"), (4, "valid")):
            other = draw_candidates(STRICT, split, seed, heldout=heldout, negatives=5)
            assert (table[:, 1:] != other[:, 1:]).any(axis=1).all()

    def test_validation_knows_nothing_of_the_test_item(self, split):
        other = dataclasses.replace(split, test_items=np.roll(split.test_items, 1))
        tables = [
            draw_candidates(STRICT, one, 4, heldout="valid", negatives=20) for one in (split, other)
        ]
        np.testing.assert_array_equal(*tables)

    def test_rows_drawn_when_asked_for_are_those_of_the_table(self, split):
        for heldout in ("valid", "test"):
            table = draw_candidates(STRICT, split, 3, heldout=heldout, negatives=9)
            drawn = DrawnCandidates(STRICT, split, 3, heldout, 9)
            assert drawn.shape == table.shape
            users = np.array([4, 0, 4, 17])
            np.testing.assert_array_equal(drawn[users], table[users])
            for column in (0, 5):
                np.testing.assert_array_equal(drawn[users, column], table[users, column])
            everyone = np.arange(len(table))
            np.testing.assert_array_equal(drawn[everyone], table)
            assert drawn[everyone].dtype == table.dtype
            drawn.require_items()

    def test_a_row_is_drawn_once_and_lies_on_the_disk(self, split, monkeypatch):
        drawn = DrawnCandidates(STRICT, split, 3, "test", 9)
        users, rows = np.array([4, 0, 4]), []
        draw = DrawnCandidates._draw

        def counted(self, user):
            rows.append(user)
            return draw(self, user)

        monkeypatch.setattr(DrawnCandidates, "_draw", counted)
        first = drawn[users]
        np.testing.assert_array_equal(drawn[users], first)
        drawn[np.array([0, 17])]
        assert rows == [0, 4, 17]
        assert scratch.is_mapped(drawn._kept[0])
        assert not drawn._kept[0][5].any()

    def test_room_on_the_disk_is_claimed_before_a_row_is_drawn(self, split, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(scratch.os, "posix_fallocate", full)
        with pytest.raises(UserError, match="disk full"):
            DrawnCandidates(STRICT, split, 3, "test", 9).require_room()

    def test_items_for_rows_drawn_when_asked_for(self, split):
        with pytest.raises(UserError) as found:
            DrawnCandidates(STRICT, split, 0, "test", 38).require_items()
        with pytest.raises(UserError) as expected:
            draw_candidates(STRICT, split, 0, heldout="test", negatives=38)
        assert str(found.value) == str(expected.value)

    def test_catalogue_too_small(self, split):
        with pytest.raises(UserError, match=r"items to draw 38 negatives from") as caught:
            draw_candidates(STRICT, split, 0, heldout="test", negatives=38)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("seed", range(5))
    def test_complement(self, seed):
        rng = np.random.default_rng(seed)
        excluded = np.unique(rng.integers(1, 20, rng.integers(0, 15)))
        kept = [item for item in range(1, 20) if item not in set(excluded.tolist())]
        np.testing.assert_array_equal(complement(excluded, np.arange(len(kept))), kept)


class TestCrossDomain:
    @pytest.fixture
    def crossed(self) -> Split:
        log = simulate(40, 120, seed=2, source_items=200).log
        return with_source_events(log, between=False)

    @pytest.mark.parametrize("protocol", [STRICT, REFERENCE])
    def test_candidates_are_target_items(self, crossed, protocol) -> None:
        table = draw_candidates(protocol, crossed, 0, heldout="test", negatives=50)
        assert table.min() >= 1
        assert table.max() <= 120
        assert (crossed.train.items > 120).any()

    def test_users_are_chosen_by_their_target_events(self, crossed) -> None:
        sets = user_sets(STRICT, crossed)
        np.testing.assert_array_equal(sets.encoder, crossed.train.target_lengths >= 2)
        assert (crossed.train.lengths >= 2).sum() >= sets.encoder.sum()
