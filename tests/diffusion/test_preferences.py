"""Pools of candidates and negatives: the recorded ones, NumPy twins, and what is kept of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.checkpoints import Store
from pdrec_jax.data.interactions import Interactions, from_events
from pdrec_jax.data.splits import Split, leave_one_out
from pdrec_jax.diffusion.preferences import (
    PoolRules,
    Preferences,
    compute_preferences,
    cut_pools,
    identity,
    load_preferences,
    negative_pool,
    require_room,
    save_preferences,
)
from pdrec_jax.diffusion.redraw import unpacked
from pdrec_jax.errors import UserError


@functools.partial(jax.jit, static_argnums=2)
def jit_pool(scores, excluded, rules):
    return jax.vmap(lambda *row: negative_pool(*row, rules))(scores, excluded)


jit_cut = jax.jit(cut_pools, static_argnums=(4, 5))

STRICT = PoolRules(
    candidates=4,
    candidates_unobserved=True,
    negatives=6,
    first_fraction=0.4,
    last_fraction=1.0,
    ranks_among_all=False,
)
REFERENCE = PoolRules(
    candidates=4,
    candidates_unobserved=False,
    negatives=6,
    first_fraction=0.4,
    last_fraction=0.9,
    ranks_among_all=True,
)


def ranked(scores: np.ndarray) -> np.ndarray:
    """Ids of items 1..I, best first, equal scores by id."""
    return np.argsort(-scores, kind="stable") + 1


def pool_twin(scores: np.ndarray, excluded: set[int], rules: PoolRules) -> set[int]:
    """The negatives' pool of one user, by sorting; scores of items 1..I."""
    order = ranked(scores).tolist()
    if rules.ranks_among_all:
        first = int(len(order) * rules.first_fraction)
        width = int(np.ceil(len(order) * rules.last_fraction)) - first
        return set([item for item in order[first:] if item not in excluded][:width])
    order = [item for item in order if item not in excluded]
    first = int(np.float32(len(order)) * np.float32(rules.first_fraction))
    end = int(np.ceil(np.float32(len(order)) * np.float32(rules.last_fraction)))
    return set(order[first:end])


def ragged(rows: list[set[int]]) -> np.ndarray:
    table = np.zeros((len(rows), 30), np.int32)
    for line, row in zip(table, rows, strict=True):
        line[1 : 1 + len(row)] = sorted(row)
    return table


@pytest.fixture(scope="module")
def split() -> Split:
    """Thirty users of a catalogue of 60 items, with repeats."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 20, 30)
    items = rng.integers(1, 61, lengths.sum())
    items[:60] = np.arange(1, 61)
    return leave_one_out(from_events(np.repeat(np.arange(30), lengths), items))


@pytest.fixture(scope="module")
def scores(split) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(30, 61)).astype(np.float32)


@pytest.fixture
def compute(split, scores):
    """`compute(rules, block, seed, exclude_heldout)` for all users but number 3."""

    def compute(rules=STRICT, block=9, seed=0, exclude_heldout=False, scores=scores, done=None):
        users = np.arange(30) != 3
        return compute_preferences(
            lambda block: jnp.asarray(scores[block]),
            split,
            users,
            rules,
            exclude_heldout=exclude_heldout,
            seed=seed,
            block=block,
            advance=lambda count: done is None or done.append(count),
        )

    return compute


def history(split: Split, user: int) -> set[int]:
    train = split.train
    return set(train.items[train.offsets[user] : train.offsets[user + 1]].tolist())


@pytest.mark.parametrize("rules", [STRICT, REFERENCE])
@pytest.mark.parametrize("exclude_heldout", [False, True])
def test_pools_of_two_domains_are_those_of_the_target(
    split, scores, rules, exclude_heldout
) -> None:
    """Where the source is not learnt, whatever its items score; the scores of both stay."""
    train, rng = split.train, np.random.default_rng(2)
    users = np.repeat(np.arange(30), train.lengths)
    # A source event before each event of the target; the 15 source items rank highest and lowest.
    both = np.stack([rng.integers(61, 76, train.num_events), train.items], axis=1)
    log = Interactions(
        offsets=2 * train.offsets,
        items=both.reshape(-1).astype(np.int32),
        times=None,
        domains=np.tile(np.array([1, 0], np.int8), train.num_events),
        user_ids=train.user_ids,
        item_ids=np.arange(76),
        num_target_items=60,
    )
    extremes = rng.normal(size=(30, 15)).astype(np.float32)
    all_scores = np.concatenate([scores, extremes + 9 * np.sign(extremes)], axis=1)
    both_domains = dataclasses.replace(split, train=log, learns_source=False)
    found = [
        compute_preferences(
            lambda rows, known=known: jnp.asarray(known[rows]),
            data,
            np.ones(30, bool),
            rules,
            exclude_heldout=exclude_heldout,
            seed=0,
            block=8,
        )
        for data, known in (
            (split, scores),
            (both_domains, all_scores),
        )
    ]
    for name in ("candidates", "negatives", "padding"):
        np.testing.assert_array_equal(*(getattr(made, name) for made in found))
    np.testing.assert_array_equal(found[1].observed[1::2], found[0].observed)
    own = all_scores[np.repeat(users, 2), log.items]
    np.testing.assert_array_equal(found[1].observed, own)


class TestNegativePool:
    @pytest.mark.parametrize("kind", ["normal", "ties", "level"])
    @pytest.mark.parametrize(
        "rules",
        [
            STRICT,
            dataclasses.replace(STRICT, first_fraction=0.0, last_fraction=0.9),
            REFERENCE,
        ],
    )
    def test_like_sorting(self, kind, rules):
        rng = np.random.default_rng(3)
        scores = {
            "normal": rng.normal(size=(40, 70)),
            "ties": rng.integers(0, 4, (40, 70)),
            "level": np.zeros((40, 70)),
        }[kind].astype(np.float32)
        excluded = [set(rng.integers(1, 71, n).tolist()) for n in rng.integers(0, 25, 40)]
        excluded[0] = {28}  # of level scores the last before the cut of all items
        mask, sizes = jit_pool(scores, ragged(excluded), rules)
        for row in range(40):
            expected = pool_twin(scores[row], excluded[row], rules)
            assert set((np.flatnonzero(mask[row]) + 1).tolist()) == expected
            assert sizes[row] == len(expected)

    def test_goldens(self, goldens):
        """The reference's pools, and its candidates from all items, in order."""
        golden = goldens("pools")
        items, rows = int(golden["interval"]), golden["eligible"] - 1
        rules = PoolRules(
            candidates=int(golden["top"]),
            candidates_unobserved=False,
            negatives=18,
            first_fraction=int(golden["cmin"]) / items,
            last_fraction=int(golden["cmax"]) / items,
            ranks_among_all=True,
        )
        ends = np.cumsum(golden["train_len"])
        train = np.split(golden["train_flat"], ends[:-1])
        excluded = [
            {*train[u].tolist(), int(golden["valid"][u]), int(golden["test"][u])} for u in rows
        ]
        # The reference numbers users from 1, and gives a row to those with a source domain.
        scores = golden["diff_matrix"][rows + 1]
        seen = ragged([set(train[u].tolist()) for u in rows])
        keys = jax.random.split(jax.random.key(0), len(rows))
        candidates, negatives, *_ = jit_cut(scores, seen, ragged(excluded), keys, rules, items)
        np.testing.assert_array_equal(candidates, golden["user_top_item_raw"][rows + 1])
        expected = golden["user_nearest_item_raw"][rows + 1]
        np.testing.assert_array_equal(np.sort(negatives, axis=1), np.sort(expected, axis=1))


class TestComputePreferences:
    @pytest.mark.parametrize(
        ("rules", "heldout"), [(STRICT, False), (STRICT, True), (REFERENCE, True)]
    )
    def test_like_sorting(self, compute, split, scores, rules, heldout):
        found = compute(dataclasses.replace(rules, whole_pools=True), exclude_heldout=heldout)
        train, kept = split.train, unpacked(found.pools, 60)
        np.testing.assert_array_equal(found.users, np.arange(30) != 3)
        for user in range(30):
            seen, row = history(split, user), scores[user]
            part = slice(train.offsets[user], train.offsets[user + 1])
            if user == 3:
                assert not found.candidates[user].any()
                assert not found.negatives[user].any()
                assert not found.observed[part].any()
                assert not kept[user].any()
                continue
            np.testing.assert_array_equal(found.observed[part], row[train.items[part]])
            assert found.padding[user] == row[0]
            order = ranked(row[1:]).tolist()
            if rules.candidates_unobserved:
                order = [item for item in order if item not in seen]
            assert found.candidates[user].tolist() == order[:4]
            excluded = seen
            if heldout:
                excluded = seen | {int(split.valid_items[user]), int(split.test_items[user])}
            pool = pool_twin(row[1:], excluded, rules)
            drawn = found.negatives[user].tolist()
            assert set(drawn) <= pool
            assert len(set(drawn)) == 6
            assert set((np.flatnonzero(kept[user]) + 1).tolist()) == pool

    def test_pools_that_are_kept_change_nothing_else(self, compute):
        kept, without = compute(dataclasses.replace(STRICT, whole_pools=True)), compute()
        assert without.pools is None
        for name in ("users", "candidates", "negatives", "observed", "padding"):
            np.testing.assert_array_equal(getattr(kept, name), getattr(without, name))
        assert identity(kept) != identity(without)

    def test_block_size_changes_nothing(self, compute):
        one, other = compute(block=7, done=(small := [])), compute(block=29, done=(large := []))
        assert small == [7, 7, 7, 7, 1]
        assert large == [29]
        for name in ("users", "candidates", "negatives", "observed", "padding"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))

    def test_seeds(self, compute):
        one, same, other = compute(seed=0), compute(seed=0), compute(seed=1)
        np.testing.assert_array_equal(one.negatives, same.negatives)
        assert (one.negatives != other.negatives).any()
        np.testing.assert_array_equal(one.candidates, other.candidates)

    def test_users_of_a_block_draw_on_their_own(self, compute):
        """With equal scores all around, two users would draw alike if they shared a draw."""
        rows = compute(scores=np.zeros((30, 61), np.float32)).negatives
        assert len(np.unique(rows, axis=0)) > 20

    def test_scores_that_are_not_finite(self, compute, scores):
        broken = scores.copy()
        broken[5] = np.nan
        with pytest.raises(UserError, match=r"^preferences: a score is not finite"):
            compute(scores=broken)

    def test_empty_pool(self, compute, split, scores):
        """The two items of the lowest ranks are among those that user 5 has seen."""
        rules = dataclasses.replace(REFERENCE, first_fraction=0.98, last_fraction=1.0)
        extreme = scores.copy()
        for user in range(30):
            seen = [*history(split, user), split.valid_items[user], split.test_items[user]]
            extreme[user, seen] = scores.min() - 1 if user == 5 else scores.max() + 1
        name = split.train.user_ids[5]
        with pytest.raises(UserError, match=rf"first_fraction: 0\.98 leaves user {name} no item"):
            compute(rules, exclude_heldout=True, scores=extreme)

    def test_items_that_a_user_repeats_count_once(self):
        """A log of plays may be longer than the catalogue."""
        items = np.concatenate([np.tile(np.arange(1, 6), 40), [1, 2, 3, 4]])
        places = np.repeat([0, 1], [200, 4]), items - 1
        log = from_events(*places, user_ids=[1, 2], item_ids=np.arange(1, 21))
        split = leave_one_out(log)
        everybody = np.ones(2, bool)
        require_room(split, everybody, dataclasses.replace(STRICT, candidates=15))
        with pytest.raises(UserError, match=r"16 candidates .* has seen 5 of 20 items$"):
            require_room(split, everybody, dataclasses.replace(STRICT, candidates=16))
        # Who gets no preferences needs none.
        others = np.array([False, True])
        require_room(split, others, dataclasses.replace(STRICT, candidates=16))
        # Of all items there are 20, one of which is left to be negative.
        require_room(split, everybody, dataclasses.replace(REFERENCE, candidates=20))
        with pytest.raises(UserError, match=r"21 candidates are wanted of 20 items$"):
            require_room(split, everybody, dataclasses.replace(REFERENCE, candidates=21))

    @pytest.mark.parametrize("exclude_heldout", [False, True])
    def test_items_held_out_are_candidates_and_may_be_negative(self, exclude_heldout):
        """Of 8 items the first user has taken 6 in training, and holds out the other two."""
        events = np.repeat([0, 1], [8, 3]), np.concatenate([np.arange(8), np.arange(3)])
        log = from_events(*events, user_ids=[1, 2], item_ids=np.arange(8))
        split, users = leave_one_out(log), np.ones(2, bool)
        rules = dataclasses.replace(STRICT, candidates=2)
        if exclude_heldout:
            for some in (rules, dataclasses.replace(REFERENCE, candidates=2)):
                with pytest.raises(UserError, match=r"a negative is wanted, .* seen 8 of 8 items"):
                    require_room(split, users, some, exclude_heldout=True)
        else:
            require_room(split, users, rules)
            with pytest.raises(UserError, match=r"3 candidates .* has seen 6 of 8 items"):
                require_room(split, users, dataclasses.replace(STRICT, candidates=3))

    def test_catalogue_too_small(self, compute):
        with pytest.raises(UserError, match=r"59 candidates .* of 60 items$"):
            compute(dataclasses.replace(STRICT, candidates=59))


class TestSaving:
    @pytest.fixture
    def store(self, tmp_path) -> Store:
        return Store(tmp_path / "preferences")

    def made(self, split: Split) -> Preferences:
        rng = np.random.default_rng(5)
        return Preferences(
            rng.random(30) < 0.5,
            rng.integers(0, 60, (30, 4)).astype(np.int32),
            rng.integers(0, 60, (30, 6)).astype(np.int32),
            rng.normal(size=split.train.num_events).astype(np.float32),
            rng.normal(size=30).astype(np.float32),
        )

    def test_round_trip(self, store, split):
        saved = self.made(split)
        save_preferences(store, saved, {"seed": 3})
        before = {id(array) for array in jax.live_arrays()}
        loaded = load_preferences(store, split, STRICT)
        assert {id(array) for array in jax.live_arrays()} <= before  # no device holds any
        assert loaded.pools is None
        for field in dataclasses.fields(Preferences)[:-1]:
            value = getattr(loaded, field.name)
            assert isinstance(value, np.ndarray)
            assert value.dtype == getattr(saved, field.name).dtype
            np.testing.assert_array_equal(value, getattr(saved, field.name))
        assert store.restore_meta("preferences") == {"seed": 3}

    def test_with_pools(self, store, split):
        pools = np.random.default_rng(6).integers(0, 2**32, (30, 2), np.uint32)
        save_preferences(store, dataclasses.replace(self.made(split), pools=pools), {})
        found = load_preferences(store, split, dataclasses.replace(STRICT, whole_pools=True)).pools
        assert found is not None
        assert found.dtype == np.uint32
        np.testing.assert_array_equal(found, pools)

    def test_with_pools_of_the_target_alone(self, store, split):
        """Of 60 items the first 30 are the target's, of which a pool takes one number."""
        train = dataclasses.replace(
            split.train,
            domains=(split.train.items > 30).astype(np.int8),
            num_target_items=30,
        )
        pools = np.arange(30, dtype=np.uint32)[:, None]
        save_preferences(store, dataclasses.replace(self.made(split), pools=pools), {})
        both = dataclasses.replace(split, train=train, learns_source=False)
        found = load_preferences(store, both, dataclasses.replace(STRICT, whole_pools=True)).pools
        np.testing.assert_array_equal(found, pools)

    def test_others(self, store, split):
        with pytest.raises(UserError, match=r"no checkpoint here$"):
            load_preferences(store, split, STRICT)
        save_preferences(store, self.made(split), {})
        for rules in (
            dataclasses.replace(STRICT, candidates=5),
            dataclasses.replace(STRICT, negatives=7),
            dataclasses.replace(STRICT, whole_pools=True),
        ):
            with pytest.raises(UserError, match="expected") as caught:
                load_preferences(store, split, rules)
            assert "\n" not in str(caught.value)
        users = np.repeat(np.arange(5), 4)
        smaller = leave_one_out(from_events(users, np.tile(np.arange(1, 5), 5)))
        with pytest.raises(UserError, match=r"\(5, 4\)"):
            load_preferences(store, smaller, STRICT)


def test_the_device_has_the_next_block_while_the_host_reads_one(compute, scores) -> None:
    order = []

    class Noted:
        def __getitem__(self, rows):
            order.append("scored")
            return scores[rows]

    compute(block=10, scores=Noted(), done=order)
    assert order == ["scored", "scored", 10, "scored", 10, 9]
