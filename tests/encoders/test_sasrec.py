"""SASRec on packed rows against the public code's numbers; what a state may depend on."""

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pdrec_jax.encoders import layers
from pdrec_jax.encoders.layers import normalise
from pdrec_jax.encoders.model import (
    EncoderModel,
    TrainingData,
    final_states,
    score_all,
    score_items,
)
from pdrec_jax.encoders.optimise import train_epoch
from pdrec_jax.encoders.step import OPTIMISER
from pdrec_jax.encoders.step_inputs import training_rows

CLOSE = {"rtol": 0, "atol": 1e-4}
ITEMS, LENGTH = 31, 12
PREFIX = "sasrec_embedding_source."


def from_torch(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The public code's tensors of SASRec, by our names; ``key_bias`` beside the others."""
    get = {name.removeprefix(PREFIX): value for name, value in arrays.items() if PREFIX in name}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": get[f"{name}.weight"], "bias": get[f"{name}.bias"]}

    def block(n: int) -> dict[str, Any]:
        weight = get[f"attention_layers.{n}.in_proj_weight"]
        bias = get[f"attention_layers.{n}.in_proj_bias"]
        projections = dict(zip(("query", "key", "value"), np.split(weight, 3), strict=True))
        biases = zip(("query_bias", "key_bias", "value_bias"), np.split(bias, 3), strict=True)
        forward = f"forward_layers.{n}.conv"
        return {
            "attention_norm": norm(f"attention_layernorms.{n}"),
            "attention": {name: part.T for name, part in projections.items()}
            | dict(biases)
            | {
                "output": get[f"attention_layers.{n}.out_proj.weight"].T,
                "output_bias": get[f"attention_layers.{n}.out_proj.bias"],
            },
            "forward_norm": norm(f"forward_layernorms.{n}"),
            "forward": {
                "inner": get[f"{forward}1.weight"][:, :, 0].T,
                "inner_bias": get[f"{forward}1.bias"],
                "outer": get[f"{forward}2.weight"][:, :, 0].T,
                "outer_bias": get[f"{forward}2.bias"],
            },
        }

    return {
        "item_embedding": get["item_emb.weight"],
        "position_embedding": get["pos_emb.weight"],
        "blocks": {0: block(0), 1: block(1)},
        "last_norm": norm("last_layernorm"),
    }


def without_key_bias(tree: dict[str, Any]) -> dict[str, Any]:
    blocks = {
        n: block | {"attention": {k: v for k, v in block["attention"].items() if k != "key_bias"}}
        for n, block in tree["blocks"].items()
    }
    return tree | {"blocks": blocks}


def section(golden, name: str) -> dict[str, Any]:
    start = f"{name}/"
    arrays = {key.removeprefix(start): value for key, value in golden.items() if start in key}
    return jax.tree.map(jnp.asarray, from_torch(arrays))


def assert_trees_close(found, wanted, *, rtol: float, atol: float) -> None:
    """Compares trees of arrays, and names the leaf that is off."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for (path, left), right in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(left, right, rtol=rtol, atol=atol, err_msg=name)


@pytest.fixture
def golden(golden_of) -> SimpleNamespace:
    """The public code's example, with its parameters."""
    example = golden_of("sasrec_tiny")
    negatives = [example.arrays["neg"], example.arrays["nns"]]
    return SimpleNamespace(
        arrays=example.arrays,
        params=section(example.arrays, "w"),
        events=example.events,
        negatives=negatives,
        example=example,
    )


@pytest.fixture
def model(small_model) -> EncoderModel:
    return small_model(ITEMS, ("hbr", "nns", "dpa"), dpa__coarse=6, dpa__fine=3)[0]


@pytest.fixture
def data(golden, given_negatives) -> TrainingData:
    return golden.example.data(given_negatives, golden.events.batch())


@functools.partial(jax.jit, static_argnums=1)
def encode_jit(params, model, vectors, rows, key):
    return model.encoder(params)(vectors, rows, key)


final_jit = jax.jit(final_states, static_argnums=1)


class TestGolden:
    """Against the public code, run in PyTorch."""

    def test_it_is_packed(self, golden):
        assert golden.events.batch().segment[0].size == 5 * LENGTH < golden.arrays["seq"].size

    def test_weights_of_hbr(self, golden, data):
        weights = np.asarray(data.weights)[golden.events.targets()]
        found = weights[golden.arrays["pos"] > 0]
        np.testing.assert_allclose(found, golden.arrays["loss_reweight"], **CLOSE)

    def test_features(self, golden, model, data):
        batch = golden.events.batch()
        inputs, following, _ = training_rows(
            data, batch.users, batch.event[0], batch.segment[0], LENGTH
        )
        params = without_key_bias(golden.params)
        states = encode_jit(params, model, params["item_embedding"][inputs.items], inputs, None)
        cells, row, column = golden.events.places(batch)
        assert len(cells) == (golden.arrays["pos"] > 0).sum()
        np.testing.assert_allclose(
            states.reshape(-1, 8)[cells], golden.arrays["features"][row, column], **CLOSE
        )
        np.testing.assert_array_equal(
            data.items[following.reshape(-1)[cells]], golden.arrays["pos"][row, column]
        )
        logits = {
            "pos_logits": golden.arrays["pos"],
            "neg_logits_0": golden.arrays["neg"],
            "neg_logits_1": golden.arrays["nns"],
        }
        unit = normalise(states.reshape(-1, 8)[cells])
        for name, items in logits.items():
            found = score_items(params, model, unit, items[row, column][:, None])[:, 0]
            np.testing.assert_allclose(found, golden.arrays[name][row, column], **CLOSE)

    def test_soft_logits(self, golden, model):
        params = without_key_bias(golden.params)
        batch, events = golden.events.batch(), golden.events
        states = final_jit(params, model, events.offsets, events.items, batch)
        found = score_items(params, model, states, golden.arrays["soft"])
        np.testing.assert_allclose(found, golden.arrays["soft_logits"], **CLOSE)

    def test_predict(self, golden, model):
        arrays, events = golden.arrays, golden.example.inputs()
        params = without_key_bias(golden.params)
        states = final_jit(params, model, events.offsets, events.items, events.batch())
        found = score_items(params, model, states, arrays["predict_items"])
        np.testing.assert_allclose(found, arrays["predict"], **CLOSE)
        catalogue = score_all(params, model, states)
        found = np.take_along_axis(np.asarray(catalogue), arrays["predict_items"], axis=1)
        np.testing.assert_allclose(found, arrays["predict"], **CLOSE)

    def test_padded_twin(self, golden, padded_sasrec):
        # The oracle of the other tests, with the key bias that the encoder under test leaves out.
        arrays, events = golden.arrays, golden.events
        twin = padded_sasrec(heads=1, attend_padding=True, temperature=5.0)
        weights = np.zeros(arrays["pos"].shape, np.float32)
        weights[arrays["pos"] > 0] = arrays["loss_reweight"]
        batch = {
            "inputs": arrays["seq"],
            "positive": arrays["pos"],
            "negatives": golden.negatives,
            "weights": weights,
            "whole": events.rows(skip_last=False),
            "soft": arrays["soft"],
        }
        batch = jax.tree.map(jnp.asarray, batch)
        loss = jax.jit(twin.loss, static_argnums=2)(golden.params, batch, 3, 0.3)
        np.testing.assert_allclose(loss, arrays["loss"], **CLOSE)


class TestGoldenStep:
    @pytest.fixture
    def quick_compilation(self) -> None:
        """Compiled as users compile it."""

    @pytest.mark.loose_jax("dtypes")
    def test_first_step(self, golden, model, data):
        params = without_key_bias(golden.params)
        state = {"params": params, "optimiser": OPTIMISER.init(params)}
        batches = jax.tree.map(lambda leaf: leaf[None], golden.events.batch())
        # The epoch donates its state.
        state, losses = train_epoch(state, data, batches, np.arange(1), 0.005, model, 0)
        np.testing.assert_allclose(losses, golden.arrays["loss"][None], **CLOSE)
        # After one step the first moment is a tenth of the gradient.
        gradient = jax.tree.map(lambda moment: moment * 10, state["optimiser"].mu)
        wanted = section(golden.arrays, "grad")
        assert_trees_close(gradient, without_key_bias(wanted), **CLOSE)
        stepped = without_key_bias(section(golden.arrays, "adam1"))
        assert_trees_close(state["params"], stepped, **CLOSE)
        # What has no counterpart here has no influence there.
        for block in wanted["blocks"].values():
            assert float(jnp.abs(block["attention"]["key_bias"]).max()) < 1e-7


LENGTHS = (1, 2, 3, 5, 11, 12, 13, 30, 4, 4)


@pytest.fixture(params=[True, False], ids=["attend", "mask"])
def attend_padding(request) -> bool:
    return request.param


@pytest.fixture
def encode(attend_padding, small_model, histories) -> Callable[..., SimpleNamespace]:
    """`encode(order)` packs those users' whole histories: rows, events [R, L] and the states."""
    model, params = small_model(
        40,
        encoder__blocks=2,
        encoder__heads=2,
        encoder__dropout=0.3,
        encoder__attend_padding=attend_padding,
    )
    offsets = np.cumsum([0, *LENGTHS])
    drawn = np.random.default_rng(3).integers(1, 41, offsets[-1]).astype(np.int32)

    def encode(order: Sequence[int], items=drawn, key=None, rows=(7,)):
        batch = histories(offsets, items, np.array(order), LENGTH).batch(rows)
        data = SimpleNamespace(offsets=jnp.asarray(offsets, jnp.int32), items=jnp.asarray(items))
        (event,), (segment,) = batch.event, batch.segment
        _, _, whole = training_rows(data, batch.users, event, segment, LENGTH)
        vectors = params["item_embedding"][whole.items]
        states = encode_jit(params, model, vectors, whole, key)
        return SimpleNamespace(
            rows=whole,
            event=np.where(segment < len(order), event, -1),
            vectors=vectors,
            states=np.asarray(states),
            function=lambda vectors: model.encoder(params)(vectors, whole, key),
        )

    encode.items, encode.offsets = drawn, offsets
    return encode


class TestLeakage:
    """A state depends on the cells before it in its own segment and on itself, on nothing else."""

    @pytest.mark.parametrize("attend_padding", [True])
    def test_derivatives(self, encode, monkeypatch):
        # ``project`` differs from the plain product in its reverse-mode gradient alone.
        monkeypatch.setattr(layers, "project", jnp.dot)
        run = encode(range(10))
        # Forward: the reverse one is summed wrongly by jaxlib 0.10.2 on CPU (jax issue 39103).
        jacobian = jax.jit(jax.jacfwd(run.function))(run.vectors)
        depends = np.asarray(jnp.abs(jacobian).sum((2, 5))) > 0
        allowed = np.zeros(depends.shape, bool)
        for row, (segments, items) in enumerate(
            zip(np.asarray(run.rows.segment), np.asarray(run.rows.items), strict=True)
        ):
            for cell in np.flatnonzero(items):
                for earlier in range(cell + 1):
                    same = segments[earlier] == segments[cell]
                    allowed[row, cell, row, earlier] = same
        np.testing.assert_array_equal(depends, allowed)

    @pytest.mark.parametrize("key", [None, 5], ids=["evaluation", "dropout"])
    def test_other_histories_and_later_events_may_be_any(self, encode, key):
        key = None if key is None else jax.random.key(key)
        items, offsets = encode.items, encode.offsets
        before = encode(range(10), key=key)
        for user in range(10):
            begin, end = offsets[user], offsets[user + 1]
            middle = (begin + end) // 2
            kept = (before.event >= begin) & (before.event < middle)
            other = np.where(np.arange(len(items)) < middle, items, 41 - items)
            other[:begin] = 41 - items[:begin]
            after = encode(range(10), items=other, key=key)
            np.testing.assert_array_equal(before.event, after.event)
            np.testing.assert_array_equal(before.states[kept], after.states[kept])
            later = (before.event >= middle) & (before.event < end)
            assert (np.abs(before.states - after.states).max(-1)[later] > 1e-3).all()

    @given(order=st.permutations(range(10)))
    @settings(
        deadline=None,
        max_examples=20,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    def test_any_packing_gives_the_same_states(self, encode, order):
        one, other = encode(range(10)), encode(order)
        shown = one.event[one.event >= 0]
        assert sorted(shown) == sorted(other.event[other.event >= 0])
        place = {event: cell for cell, event in enumerate(other.event.ravel().tolist())}
        cells = [place[event] for event in shown.tolist()]
        np.testing.assert_allclose(
            one.states[one.event >= 0], other.states.reshape(-1, 8)[cells], rtol=0, atol=1e-5
        )

    def test_a_user_alone(self, encode):
        together = encode(range(10))
        for user in range(10):
            alone = encode([user], rows=(1,))
            for event in alone.event[alone.event >= 0]:
                np.testing.assert_allclose(
                    alone.states[alone.event == event],
                    together.states[together.event == event],
                    rtol=0,
                    atol=1e-5,
                )


class TestDropout:
    def test_only_with_a_key(self, encode):
        states = [encode(range(10), key=key).states for key in (None, None)]
        np.testing.assert_array_equal(*states)
        dropped = [encode(range(10), key=jax.random.key(seed)).states for seed in (1, 1, 2)]
        np.testing.assert_array_equal(dropped[0], dropped[1])
        occupied = np.asarray(encode(range(10)).rows.items) > 0
        for left, right in ((states[0], dropped[0]), (dropped[0], dropped[2])):
            assert (np.abs(left - right).max(-1)[occupied] > 1e-3).all()
