"""GRU4Rec without its padding against the public code's numbers; what a state may depend on."""

import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.data.batches import LANES, Layout
from pdrec_jax.encoders import stage
from pdrec_jax.encoders.layers import normalise
from pdrec_jax.encoders.model import final_states, score_all, score_items
from pdrec_jax.encoders.optimise import train_epoch
from pdrec_jax.encoders.step import OPTIMISER
from pdrec_jax.encoders.step_inputs import training_rows

CLOSE = {"rtol": 0, "atol": 1e-4}
ITEMS, LENGTH, WIDTH = 31, 12, 8
LAYOUTS = {"one length": Layout((), shared=False), "three lengths": Layout((2, 5), shared=False)}


def section(golden, name: str) -> dict[str, Any]:
    """The public code's tensors of a part of its file, by our names."""
    get = {
        key.removeprefix(f"{name}/"): golden[key] for key in golden if key.startswith(f"{name}/")
    }

    def gates(tensor: np.ndarray) -> np.ndarray:
        return tensor.reshape(3, WIDTH, WIDTH).transpose(0, 2, 1)

    tree = {
        "item_embedding": get["source_item_emb.weight"],
        "input": gates(get["gru_source.weight_ih_l0"]),
        "input_bias": get["gru_source.bias_ih_l0"].reshape(3, WIDTH),
        "hidden": gates(get["gru_source.weight_hh_l0"]),
        "hidden_bias": get["gru_source.bias_hh_l0"].reshape(3, WIDTH),
        "start": get["h0_source"].reshape(WIDTH),
    }
    return jax.tree.map(jnp.asarray, tree)


@pytest.fixture(params=LAYOUTS)
def layout(request) -> Layout:
    return LAYOUTS[request.param]


@pytest.fixture
def golden(golden_of, layout, small_model, given_negatives) -> SimpleNamespace:
    example = golden_of("gru4rec_tiny")
    batch = example.events.batch(layout=layout)
    model, shapes = small_model(
        ITEMS, ("hbr", "nns", "dpa"), dpa__coarse=6, dpa__fine=3, encoder__name="gru4rec"
    )
    params = section(example.arrays, "w")
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    return SimpleNamespace(
        arrays=example.arrays,
        example=example,
        events=example.events,
        model=model,
        params=params,
        batch=batch,
        data=example.data(given_negatives, batch),
    )


@functools.partial(jax.jit, static_argnums=1)
def encode_jit(params, model, vectors, rows):
    return model.encoder(params).encode(vectors, rows, None)


final_jit = jax.jit(final_states, static_argnums=1)


class TestGolden:
    """Against the public code, run in PyTorch."""

    def test_features_and_logits(self, golden):
        batch, arrays, data = golden.batch, golden.arrays, golden.data
        rows = [
            training_rows(data, batch.users, event, segment, LENGTH)[0]
            for event, segment in zip(batch.event, batch.segment, strict=True)
        ]
        vectors = [golden.params["item_embedding"][group.items] for group in rows]
        states = encode_jit(golden.params, golden.model, vectors, rows)
        cells, row, column = golden.events.places(batch)
        assert len(cells) == (arrays["pos"] > 0).sum()
        states = np.concatenate([np.asarray(group).reshape(-1, WIDTH) for group in states])[cells]
        np.testing.assert_allclose(states, arrays["features"][row, column], **CLOSE)
        for name, items in (
            ("pos_logits", "pos"),
            ("neg_logits_0", "neg"),
            ("neg_logits_1", "nns"),
        ):
            ids = arrays[items][row, column][:, None]
            found = score_items(golden.params, golden.model, normalise(jnp.asarray(states)), ids)
            np.testing.assert_allclose(found[:, 0], arrays[name][row, column], **CLOSE)

    def test_soft_logits(self, golden):
        events = golden.events
        states = final_jit(golden.params, golden.model, events.offsets, events.items, golden.batch)
        found = score_items(golden.params, golden.model, states, golden.arrays["soft"])
        np.testing.assert_allclose(found, golden.arrays["soft_logits"], **CLOSE)

    def test_predict(self, golden, layout):
        arrays, events = golden.arrays, golden.example.inputs()
        batch = events.batch(layout=layout)
        states = final_jit(golden.params, golden.model, events.offsets, events.items, batch)
        found = score_items(golden.params, golden.model, states, arrays["predict_items"])
        np.testing.assert_allclose(found, arrays["predict"], **CLOSE)
        catalogue = np.asarray(score_all(golden.params, golden.model, states))
        found = np.take_along_axis(catalogue, arrays["predict_items"], axis=1)
        np.testing.assert_allclose(found, arrays["predict"], **CLOSE)

    @pytest.mark.loose_jax("dtypes")  # optax's Adam
    def test_first_step(self, golden):
        state = {"params": golden.params, "optimiser": OPTIMISER.init(golden.params)}
        batches = jax.tree.map(lambda leaf: leaf[None], golden.batch)
        # The epoch donates its state.
        state, losses = train_epoch(
            state, golden.data, batches, np.arange(1), 0.005, golden.model, 0
        )
        np.testing.assert_allclose(losses, golden.arrays["loss"][None], **CLOSE)
        # After one step the first moment is a tenth of the gradient.
        gradient = jax.tree.map(lambda moment: moment * 10, state["optimiser"].mu)
        for found, name in ((gradient, "grad"), (state["params"], "adam1")):
            for key, wanted in section(golden.arrays, name).items():
                np.testing.assert_allclose(found[key], wanted, err_msg=f"{name} {key}", **CLOSE)

    def test_padded_twin(self, golden, padded_gru4rec):
        # The oracle of tests/encoders/test_model.py.
        arrays = golden.arrays
        weights = np.zeros(arrays["pos"].shape, np.float32)
        weights[arrays["pos"] > 0] = arrays["loss_reweight"]
        batch = {
            "inputs": arrays["seq"],
            "positive": arrays["pos"],
            "negatives": [arrays["neg"], arrays["nns"]],
            "weights": weights,
            "whole": golden.events.rows(skip_last=False),
            "soft": arrays["soft"],
        }
        twin = padded_gru4rec(temperature=5.0)
        loss = jax.jit(twin.loss, static_argnums=2)(
            golden.params, jax.tree.map(jnp.asarray, batch), 3, 0.3
        )
        np.testing.assert_allclose(loss, arrays["loss"], **CLOSE)


class TestStates:
    """A state depends on its own history up to its cell, and on the padding before it."""

    LENGTHS = (1, 2, 7, 8, 9, 23, 24, 25, 60)

    @pytest.fixture
    def encode(self, small_model, histories):
        model, params = small_model(40, encoder__name="gru4rec", encoder__max_length=24)
        offsets = np.cumsum([0, *self.LENGTHS])
        drawn = np.random.default_rng(3).integers(1, 41, offsets[-1]).astype(np.int32)

        def encode(users, items=drawn, rows=None):
            batch = histories(offsets, items, np.array(users), 24).batch(rows, LANES)
            data = SimpleNamespace(
                offsets=jnp.asarray(offsets, jnp.int32), items=jnp.asarray(items)
            )
            groups = [
                training_rows(data, batch.users, *group, 24)[2]
                for group in zip(batch.event, batch.segment, strict=True)
            ]
            vectors = [params["item_embedding"][rows.items] for rows in groups]
            states = encode_jit(params, model, vectors, groups)
            return {
                int(event): state
                for events, segments, group in zip(batch.event, batch.segment, states, strict=True)
                for event, segment, state in zip(
                    events.ravel(),
                    segments.ravel(),
                    np.asarray(group).reshape(-1, WIDTH),
                    strict=True,
                )
                if segment < len(users)
            }

        encode.items, encode.offsets = drawn, offsets
        return encode

    def test_later_events_and_other_histories_may_be_any(self, encode):
        before = encode(range(9), rows=(9, 6))
        for user in (4, 6, 8):
            begin, end = encode.offsets[user : user + 2]
            middle = (begin + end) // 2 if user < 8 else end - 10
            other = 41 - encode.items
            other[begin:middle] = encode.items[begin:middle]
            after = encode(range(9), other, (9, 6))
            for event in range(max(begin, end - 24), end):
                moved = np.abs(before[event] - after[event]).max()
                assert moved == 0 if event < middle else moved > 1e-3

    def test_a_user_alone(self, encode):
        together = encode(range(9))
        for user in (0, 3, 5, 8):
            for event, state in encode([user]).items():
                np.testing.assert_allclose(state, together[event], rtol=0, atol=1e-6)

    def test_the_length_of_the_padding_counts(self, encode):
        # The same two items last: what came before them differs, be it padding.
        items = encode.items.copy()
        items[encode.offsets[1:] - 1] = 5
        states = encode(range(9), items)
        last = [states[int(end) - 1] for end in encode.offsets[1:]]
        assert len({tuple(state.tolist()) for state in last}) == 9


def test_initial_values(config):
    settings = config(encoder__name="gru4rec", encoder__width=64, encoder__max_length=200)
    model, initialise = stage.make_model(settings, (), 400)
    assert model.layout == LANES
    params = initialise()
    assert params["item_embedding"].shape == (401, 64)
    # Xavier's, of [3 D, D] and of [1, 1, D]; PyTorch's for the vectors.
    for name in ("input", "hidden"):
        assert params[name].std() == pytest.approx((2 / (4 * 64)) ** 0.5, rel=0.05)
        bias = params[f"{name}_bias"]
        assert 0.9 / 8 < np.abs(bias).max() < 1 / 8
    assert params["start"].std() == pytest.approx(1 / 8, rel=0.3)


def test_a_vector_for_the_padding_is_not_trained(small_model, histories):
    model, params = small_model(40, encoder__name="gru4rec", encoder__max_length=24)
    events = histories(np.array([0, 3, 12]), np.arange(1, 13, dtype=np.int32), np.arange(2), 24)

    def length(params):
        states = final_states(
            params, model, events.offsets, events.items, events.batch(None, LANES)
        )
        return jnp.sum(states[:, 0])

    gradient = jax.grad(length)(params)
    assert (gradient["item_embedding"][0] == 0).all()
    assert (gradient["item_embedding"][1:13] != 0).any(axis=1).all()
