"""The reference's models by our names: the same scores as the reference computed, and back."""

import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax.convert.names import rows_of_items, table_of, to_ours, to_reference
from pdrec_jax.convert.torch_files import read_tensors
from pdrec_jax.data.batches import pack
from pdrec_jax.diffusion import reverse
from pdrec_jax.diffusion.denoiser import bind, make_denoiser, structure
from pdrec_jax.diffusion.schedule import make_schedule
from pdrec_jax.encoders import stage
from pdrec_jax.encoders.model import Batch, final_states, score_items
from pdrec_jax.errors import UserError
from pdrec_jax.settings import default_config

FILES = Path(__file__).parent / "files"
KEYS = ["diffusion", "sasrec", "gru4rec"]
NAMES = {"diffusion": "module", "sasrec": "sasrec", "gru4rec": "gru4rec"}
ROWS = {"diffusion": 23, "sasrec": 32, "gru4rec": 32}


def split_with(ids: Any, target: int) -> Any:
    train = types.SimpleNamespace(item_ids=np.asarray(ids), num_target_items=target)
    return types.SimpleNamespace(train=train)


def ours(key: str, rows: np.ndarray | None = None) -> dict[str, Any]:
    rows = np.arange(ROWS[key]) if rows is None else rows
    arrays = read_tensors(FILES / f"{NAMES[key]}.pth")
    return jax.tree.map(jnp.asarray, to_ours(key, arrays, rows, "x"))


def test_the_denoiser_computes_what_the_reference_did(goldens) -> None:
    golden = goldens("dnn_tiny")
    params = ours("diffusion")
    graph = structure(lambda: make_denoiser(23, (7,), 4, normalise=False, seed=0))
    denoiser = bind(graph, params)
    out = denoiser(jnp.asarray(golden["x_t"]), jnp.asarray(golden["t"], jnp.int32))
    np.testing.assert_allclose(out, golden["out"], rtol=1e-5, atol=1e-6)
    schedule = make_schedule("linear-var", 10, noise_scale=0.01, noise_min=0.0005, noise_max=0.005)
    a, c = schedule.affine("x0")
    kernel, bias = params["output"]["kernel"], params["output"]["bias"]
    coupled = reverse.couple(params["item_kernel"], kernel, bias)
    x = jnp.asarray(golden["x_start"])
    end = reverse.reverse_hidden(denoiser.trunk, *coupled, a, c, denoiser.project(x))
    found = end.s @ kernel.T + end.r * bias[None, :] + end.k * x
    np.testing.assert_allclose(found, golden["x0/p_sample_s0"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", KEYS[1:])
def test_an_encoder_predicts_what_the_reference_did(goldens, key) -> None:
    golden, config = goldens(f"{key}_tiny"), default_config()
    config.encoder.name, config.encoder.width, config.encoder.max_length = key, 8, 12
    config.encoder.dropout = 0.0
    model, initialise = stage.make_model(config, (), 31)
    params = ours(key)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, jax.eval_shape(initialise))
    rows = [row[row > 0] for row in golden["seq"]]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    users = np.flatnonzero(np.diff(offsets))  # one has no history, which a run has none of
    cells = pack(offsets, users, 12, None, model.layout)
    batch = Batch(users.astype(np.int32), cells.event, cells.segment, cells.last)
    items = jnp.asarray(np.concatenate(rows), jnp.int32)
    states = final_states(params, model, jnp.asarray(offsets, jnp.int32), items, batch)
    found = score_items(params, model, states, jnp.asarray(golden["predict_items"][users]))
    np.testing.assert_allclose(found, golden["predict"][users], rtol=0, atol=1e-4)


@pytest.mark.parametrize("key", KEYS)
def test_back_to_the_reference(key) -> None:
    """All that the reference computes with comes back; the unused tower is a copy of the used."""
    before = read_tensors(FILES / f"{NAMES[key]}.pth")
    after = to_reference(key, ours(key), np.arange(ROWS[key]), ROWS[key])
    assert after.keys() == before.keys()
    for name, array in before.items():
        assert after[name].shape == array.shape, name
        if name.endswith("in_proj_bias"):  # the part of the keys changes nothing
            width = len(array) // 3
            array, after[name] = (
                np.delete(a, slice(width, 2 * width)) for a in (array, after[name])
            )
        if "target" not in name:
            np.testing.assert_array_equal(after[name], array, err_msg=name)


@pytest.mark.parametrize("hidden", [(7,), (5, 6), (4, 5, 6)])
def test_deeper_denoisers_go_both_ways(hidden) -> None:
    _, params = make_denoiser(9, hidden, 3, normalise=False, seed=1)
    arrays = to_reference("diffusion", params, np.arange(9), 9)
    widths = [*reversed(hidden)]
    assert arrays["in_layers.0.weight"].shape == (widths[0], 9 + 3)
    assert len([name for name in arrays if name.startswith("in_layers")]) == 2 * len(hidden)
    assert len([name for name in arrays if name.startswith("out_layers")]) == 2 * len(hidden)
    again = to_ours("diffusion", arrays, np.arange(9), "x")
    assert jax.tree.structure(again) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_a_tensor_of_no_numbers_is_named(value) -> None:
    """1e300 is no number of float32, which ours are."""
    arrays = {**read_tensors(FILES / "gru4rec.pth")}
    arrays["h0_source"] = np.full(arrays["h0_source"].shape, value, np.float64)
    with pytest.raises(UserError, match=r"^x: h0_source holds numbers that are not finite$"):
        to_ours("gru4rec", arrays, np.arange(ROWS["gru4rec"]), "x")


class TestRows:
    def test_target_items_by_their_ids(self) -> None:
        rows = rows_of_items(split_with([0, 2, 5, 7], 3), 4, 9, "x")
        np.testing.assert_array_equal(rows, [0, 2, 5, 7])
        table = ours("diffusion", rows)
        whole = ours("diffusion")
        for name in ("kernel", "bias"):
            np.testing.assert_array_equal(table["output"][name], whole["output"][name][rows])
        back = to_reference("diffusion", table, rows, 23)["out_layers.0.bias"]
        np.testing.assert_array_equal(back[rows], whole["output"]["bias"][rows])
        assert not np.delete(back, rows).any()

    def test_source_items_take_the_rows_that_are_left(self) -> None:
        split = split_with([0, 1, 3, 1, 2], 2)
        np.testing.assert_array_equal(rows_of_items(split, 5, 5, "x"), [0, 1, 3, 2, 4])
        with pytest.raises(UserError, match="x: has 3 rows beside the target items, expected 2"):
            rows_of_items(split, 5, 6, "x")

    @pytest.mark.parametrize(
        ("ids", "told"),
        [
            ([0, 1, 9], "x: has 9 rows, so items of 1 to 8 .*found 1 to 9"),
            ([0, -1, 3], "x: has 9 rows, so items of 1 to 8 .*found -1 to 3"),
            (["", "a", "b"], r"the items of the log are text \(a, \.\.\)"),
        ],
    )
    def test_other_ids(self, ids, told) -> None:
        with pytest.raises(UserError, match=f"^{told}"):
            rows_of_items(split_with(ids, 2), 3, 9, "x")

    @pytest.mark.parametrize("key", KEYS)
    def test_the_size_of_a_table(self, key) -> None:
        arrays = read_tensors(FILES / f"{NAMES[key]}.pth")
        assert table_of(key, arrays, "x") == ROWS[key]
        with pytest.raises(UserError, match=r"x: no tensor .*, found a, \.\."):
            table_of(key, {"a": np.zeros(2)}, "x")
