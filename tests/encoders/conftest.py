"""What an encoder on packed rows is held against: the same encoder on left-padded rows."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from ml_collections import ConfigDict

from pdrec_jax.data.batches import PACKED, Layout, pack
from pdrec_jax.data.simulator import simulate
from pdrec_jax.data.splits import Split, leave_one_out
from pdrec_jax.diffusion.preferences import Preferences
from pdrec_jax.diffusion.redraw import packed
from pdrec_jax.encoders import registry
from pdrec_jax.encoders import step_inputs as inputs_module
from pdrec_jax.encoders.model import Batch, EncoderModel, TrainingData
from pdrec_jax.encoders.stage import build, hbr_weights, make_model
from pdrec_jax.encoders.task import EncoderTask
from pdrec_jax.evaluation.protocol import STRICT, draw_candidates
from pdrec_jax.settings import default_config, put


def layer_norm(x: Array, parts: dict[str, Array]) -> Array:
    mean, variance = x.mean(-1)[..., None], x.var(-1)[..., None]
    scale, bias = (parts[name].reshape(1, 1, -1) for name in ("scale", "bias"))
    return (x - mean) / jnp.sqrt(variance + 1e-8) * scale + bias


def attend(q_in: Array, x: Array, real: Array, w: dict[str, Array], heads: int, pads: bool):
    length, width = x.shape[1:]
    size = width // heads
    row = {name: value.reshape(1, 1, -1) for name, value in w.items() if value.ndim == 1}
    q = q_in @ w["query"] + row["query_bias"]
    # The public code has a key bias, and shows the padded keys: the goldens were made with both.
    k = x @ w["key"] + row.get("key_bias", jnp.zeros((1, 1, width)))
    v = x @ w["value"] + row["value_bias"]
    sees = jnp.tril(jnp.ones((length, length), bool))[None]
    if not pads:
        sees = sees & real[:, None, :]
    mixed = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        logits = q[..., part] @ jnp.swapaxes(k[..., part], 1, 2) / size**0.5
        share = jax.nn.softmax(jnp.where(sees, logits, -1e30), axis=-1)
        mixed.append(share @ v[..., part])
    return jnp.concatenate(mixed, axis=-1) @ w["output"] + row["output_bias"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Padded:
    """An encoder on rows [B, L] that are padded with 0 on the left, by the equations alone."""

    temperature: float

    def states(self, params: dict[str, Any], ids: Array) -> Array:
        """States [B, L, D] of histories [B, L]."""
        raise NotImplementedError

    def logits(self, params: dict[str, Any], states: Array, items: Array) -> Array:
        """Cosine scores [...] of states [..., D] for items [...]."""

        def unit(x: Array) -> Array:
            return x / jnp.sqrt(jnp.maximum(jnp.sum(x * x, -1), 1e-24))[..., None]

        products = unit(states) * unit(params["item_embedding"][items])
        return self.temperature * jnp.sum(products, -1)

    def loss(self, params: dict[str, Any], batch: dict[str, Array], fine: int, share: float):
        """The objective on padded rows.

        ``batch``: histories less the last event, ``inputs`` [B, L]; next items ``positive`` [B, L];
        any number of ``negatives``; ``weights`` [B, L]; whole histories ``whole`` [B, L] and their
        ``soft`` candidates [B, M], of which ``fine`` count with weight ``share``.
        """
        states, real = self.states(params, batch["inputs"]), batch["positive"] > 0

        def mean(terms: Array) -> Array:
            return jnp.sum(jnp.where(real, terms, 0)) / jnp.sum(real, dtype=terms.dtype)

        hit = -jax.nn.log_sigmoid(self.logits(params, states, batch["positive"]))
        loss = mean(hit * batch["weights"])
        for items in batch["negatives"]:
            miss = -jax.nn.log_sigmoid(-self.logits(params, states, items))
            loss = loss + mean(miss) / len(batch["negatives"])
        if fine:
            last = self.states(params, batch["whole"])[:, -1:]
            soft = jnp.sort(self.logits(params, last, batch["soft"]), axis=1)[:, -fine:]
            loss = loss - share * jnp.mean(jax.nn.log_sigmoid(soft))
        return loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaddedSASRec(Padded):
    """SASRec, see ``Padded``."""

    heads: int
    attend_padding: bool

    def states(self, params: dict[str, Any], ids: Array) -> Array:
        """States [B, L, D] of histories [B, L]."""
        table, real = params["item_embedding"], ids > 0
        x = table[ids] * table.shape[1] ** 0.5 + params["position_embedding"][None]
        x = jnp.where(real[..., None], x, 0)
        for block in params["blocks"].values():
            queries = layer_norm(x, block["attention_norm"])
            x = queries + attend(
                queries, x, real, block["attention"], self.heads, self.attend_padding
            )
            x = layer_norm(x, block["forward_norm"])
            w = block["forward"]
            hidden = jax.nn.relu(x @ w["inner"] + w["inner_bias"].reshape(1, 1, -1))
            x = x + hidden @ w["outer"] + w["outer_bias"].reshape(1, 1, -1)
            x = jnp.where(real[..., None], x, 0)
        return layer_norm(x, params["last_norm"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaddedGRU4Rec(Padded):
    """GRU4Rec, see ``Padded``; the padding row of the table is no parameter."""

    def states(self, params: dict[str, Any], ids: Array) -> Array:
        """States [B, L, D] of histories [B, L]."""
        table, width = params["item_embedding"], params["start"].shape[0]
        rows = jnp.where(
            ids[..., None] > 0, table[ids], jax.lax.stop_gradient(table)[0].reshape(1, 1, -1)
        )
        w_in, w_h = (
            params[name].transpose(1, 0, 2).reshape(width, -1) for name in ("input", "hidden")
        )
        b_in, b_h = (params[f"{name}_bias"].reshape(1, -1) for name in ("input", "hidden"))

        def step(h: Array, x: Array) -> tuple[Array, Array]:
            a_r, a_z, a_n = jnp.split(x @ w_in + b_in, 3, axis=1)
            c_r, c_z, c_n = jnp.split(h @ w_h + b_h, 3, axis=1)
            z = jax.nn.sigmoid(a_z + c_z)
            new = jnp.tanh(a_n + jax.nn.sigmoid(a_r + c_r) * c_n)
            h = (1 - z) * new + z * h
            return h, h

        start = jnp.broadcast_to(params["start"].reshape(1, -1), (len(ids), width))
        return jnp.swapaxes(jax.lax.scan(step, start, jnp.swapaxes(rows, 0, 1))[1], 0, 1)


@pytest.fixture(scope="session")
def padded_sasrec() -> type[PaddedSASRec]:
    return PaddedSASRec


@pytest.fixture(scope="session")
def padded_gru4rec() -> type[PaddedGRU4Rec]:
    return PaddedGRU4Rec


@dataclasses.dataclass(frozen=True)
class Histories:
    """A batch of B users, packed and padded, with what a step draws for them put in by hand."""

    offsets: np.ndarray
    items: np.ndarray
    users: np.ndarray
    length: int

    def rows(self, *, skip_last: bool) -> np.ndarray:
        """[B, L] the last L events, or those before the last event, padded on the left."""
        table = np.zeros((len(self.users), self.length), np.int32)
        for line, user in zip(table, self.users, strict=True):
            own = self.items[self.offsets[user] : self.offsets[user + 1] - skip_last]
            own = own[-self.length :]
            line[self.length - len(own) :] = own
        return table

    def targets(self) -> np.ndarray:
        """[B, L] index of the event that follows each cell of ``rows(skip_last=True)``, or 0."""
        table = np.zeros((len(self.users), self.length), np.int64)
        for line, user in zip(table, self.users, strict=True):
            events = np.arange(self.offsets[user] + 1, self.offsets[user + 1])[-self.length :]
            line[self.length - len(events) :] = events
        return table

    def batch(self, rows: tuple[int, ...] | None = None, layout: Layout = PACKED) -> Batch:
        """The packed layout."""
        cells = pack(self.offsets, self.users, self.length, rows, layout)
        return Batch(self.users.astype(np.int32), cells.event, cells.segment, cells.last)

    def places(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The cells that have a next item, counted over all groups, with their padded row, column.

        Counted from the right end of a history: its last event but one is in the last column.
        """
        event, segment = (
            np.concatenate([group.reshape(-1) for group in part])
            for part in (batch.event, batch.segment)
        )
        user = self.users[np.minimum(segment, len(self.users) - 1)]
        begin, end = self.offsets[user], self.offsets[user + 1]
        column = self.length - (end - 1) + event - (end - begin > self.length)
        cells = np.flatnonzero((segment < len(self.users)) & (column < self.length))
        return cells, segment[cells], column[cells]

    def cells(self, table: np.ndarray, batch: Batch) -> np.ndarray:
        """Entries of a padded [B, L] table at all cells laid end to end; 1 where it has none."""
        cells, row, column = self.places(batch)
        out = np.ones(sum(group.size for group in batch.event), table.dtype)
        out[cells] = table[row, column]
        return out


@pytest.fixture(scope="session")
def histories() -> type[Histories]:
    return Histories


@pytest.fixture
def given_negatives(monkeypatch) -> Callable[[TrainingData, np.ndarray, np.ndarray], TrainingData]:
    """`given_negatives(data, uniform, safe)` is data whose draws are these, one a packed cell."""
    monkeypatch.setattr(inputs_module, "draw_outside", lambda key, table, users: table)
    monkeypatch.setattr(inputs_module, "draw_negatives", lambda key, pools, users: pools)

    def given(data: TrainingData, uniform: np.ndarray, safe: np.ndarray) -> TrainingData:
        return dataclasses.replace(
            data, outside=jnp.asarray(uniform, jnp.int32), pools=jnp.asarray(safe, jnp.int32)
        )

    return given


def _config(**fields: Any) -> ConfigDict:
    """The default config, small; `_config(encoder__heads=2)` sets `encoder.heads`."""
    config = default_config()
    small = {"encoder__width": 8, "encoder__max_length": 12, "encoder__dropout": 0.0}
    for name, value in (small | fields).items():
        put(config, name.replace("__", "."), value)
    return config


@pytest.fixture(scope="session")
def config() -> Callable[..., ConfigDict]:
    return _config


@pytest.fixture(scope="session")
def small_model() -> Callable[..., tuple[EncoderModel, dict[str, Any]]]:
    """`small_model(items, plugins, seed=.., **fields)`: a model, parameters that all matter."""

    @functools.cache
    def structure(items: int, plugins: tuple[str, ...], fields: tuple) -> tuple[EncoderModel, Any]:
        model, initialise = make_model(_config(**dict(fields)), plugins, items)
        return model, jax.eval_shape(initialise)

    def make(items: int, plugins: tuple[str, ...] = (), *, seed: int = 0, **fields: Any):
        model, shapes = structure(items, plugins, tuple(sorted(fields.items())))
        rng = np.random.default_rng(seed)

        def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> Array:
            # The padding row is not 0, no bias is 0, no scale is 1.
            values = rng.normal(0, 0.4 if len(leaf.shape) > 1 else 0.2, leaf.shape)
            return jnp.asarray(values + ("scale" in jax.tree_util.keystr(path)), leaf.dtype)

        return model, jax.tree.map_with_path(draw, shapes)

    return make


@dataclasses.dataclass(frozen=True)
class World:
    """A small simulated log, split, with preferences drawn at random."""

    split: Split
    preferences: Preferences
    candidates: np.ndarray
    validation: np.ndarray


@pytest.fixture(scope="session")
def world() -> World:
    split = leave_one_out(simulate(70, 200, seed=1, mean_length=12).log)
    train, rng = split.train, np.random.default_rng(2)
    outside = np.stack(
        [
            rng.permutation(np.setdiff1d(np.arange(1, 201), train.items[begin:end]))[:40]
            for begin, end in itertools.pairwise(train.offsets)
        ]
    ).astype(np.int32)
    preferences = Preferences(
        users=np.ones(train.num_users, bool),
        candidates=outside[:, :8],
        negatives=outside[:, 8:],
        observed=rng.normal(0.5, 1, train.num_events).astype(np.float32),
        padding=rng.normal(0.0, 1, train.num_users).astype(np.float32),
        pools=packed((np.arange(1, 201)[None, :, None] == outside[:, None, :]).any(axis=2)),
    )
    test, validation = (
        draw_candidates(STRICT, split, 0, heldout=heldout) for heldout in ("test", "valid")
    )
    return World(split, preferences, test, validation)


@pytest.fixture(scope="session")
def built(world: World) -> Callable[..., EncoderTask]:
    """`built(variant, encoder__blocks=1)`: the task of an encoder in `world`, under `strict`."""

    def make(variant: str = "base", **fields: Any) -> EncoderTask:
        settings = {"encoder__batch_size": 8, "encoder__learning_rate": 0.01} | fields
        task, _ = build(
            _config(**settings),
            variant,
            world.split,
            None if variant == "base" else world.preferences,
            drawn=world.split.train.lengths >= 2,
            ranked=np.ones(world.split.train.num_users, bool),
            protocol=STRICT,
            candidates=world.candidates,
            validation=world.validation,
            name="sasrec",
        )
        return task

    return make


@pytest.fixture(autouse=True)
def quick_compilation() -> Iterator[None]:
    """Halves the time that these tests spend in the compiler, which is most of it.

    A class that overrides this fixture tests the code as users compile it.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def own_encoders(monkeypatch) -> None:
    """Lets a test register encoders that are forgotten after it."""
    monkeypatch.setattr(registry, "_ENCODERS", dict(registry._ENCODERS))


@dataclasses.dataclass(frozen=True)
class Golden:
    """The public code's example of an encoder: its arrays, and its users as a log."""

    arrays: Any
    events: Histories

    def data(self, given: Callable[..., TrainingData], batch: Batch) -> TrainingData:
        """What a step reads, the golden's draws and its HBR weights put in."""
        arrays, events = self.arrays, self.events
        uniform, safe = (events.cells(arrays[name], batch) for name in ("neg", "nns"))
        offsets = events.offsets
        owner = np.repeat(arrays["u"], np.diff(offsets))
        lengths = np.diff(offsets)
        train = SimpleNamespace(
            offsets=offsets, lengths=lengths, num_events=offsets[-1], mapped=False
        )
        preferences = SimpleNamespace(
            observed=arrays["diff_matrix"][owner, events.items],
            padding=arrays["diff_matrix"][arrays["u"], 0],
        )
        rank_weight, clip, scale = arrays["loss_args"][:3]
        weights = hbr_weights(
            ConfigDict({"rank_weight": rank_weight, "clip": clip, "scale": scale}),
            SimpleNamespace(train=train, learns_source=True),
            preferences,
            "shifted",
            events.length,
        )
        plain = TrainingData(
            jnp.asarray(offsets, jnp.int32),
            jnp.asarray(events.items),
            outside=None,
            weights=jnp.asarray(weights),
            pools=None,
            candidates=jnp.asarray(arrays["soft"]),
        )
        return given(plain, uniform, safe)

    def inputs(self) -> Histories:
        """The input of its predict, without the last event; an empty one where it is the only."""
        rows = [row[row > 0] if row.any() else row[:1] for row in self.arrays["seq"]]
        offsets = np.cumsum([0, *map(len, rows)])
        return Histories(offsets, np.concatenate(rows), np.arange(len(rows)), self.events.length)


@pytest.fixture
def golden_of(goldens) -> Callable[[str], Golden]:
    def make(name: str) -> Golden:
        arrays, most = goldens(name), 12
        rows = []
        for row, last, n in zip(arrays["seq"], arrays["pos"][:, -1], arrays["lens"], strict=True):
            # Events before the window must not matter; a user without a pair is one empty event.
            before = [1 + k % 31 for k in range(n - most)]
            rows.append([*before, *row[row > 0], last])
        offsets = np.cumsum([0, *map(len, rows)])
        items = np.concatenate(rows).astype(np.int32)
        events = Histories(offsets, items, np.arange(len(rows)), most)
        np.testing.assert_array_equal(events.rows(skip_last=True), arrays["seq"])
        np.testing.assert_array_equal(events.rows(skip_last=False), arrays["seq_new"])
        assert np.diff(offsets).tolist() == (arrays["lens"] + 1).tolist()
        return Golden(arrays, events)

    return make
