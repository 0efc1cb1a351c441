"""SASRec on packed rows against the public code's numbers; what a state may depend on."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pdrec_jax.data.batches import pack
from pdrec_jax.encoders.layers import Rows, visible_cells
from pdrec_jax.encoders.model import (
    EncoderModel,
    TrainingData,
    final_states,
    score_all,
    score_items,
    training_loss,
    training_rows,
)
from pdrec_jax.encoders.stage import hbr_weights

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
        n: block
        | {"attention": {k: v for k, v in block["attention"].items() if k != "key_bias"}}
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


@dataclasses.dataclass(frozen=True)
class Golden:
    """The public code's example: its arrays, its parameters, and its users as a log."""

    arrays: Any
    params: dict[str, Any]
    events: Any

    @property
    def negatives(self) -> list[np.ndarray]:
        return [self.arrays["neg"], self.arrays["nns"]]


@pytest.fixture
def golden(goldens, histories) -> Golden:
    arrays = goldens("sasrec_tiny")
    rows = []
    for row, last, length in zip(arrays["seq"], arrays["pos"][:, -1], arrays["lens"], strict=True):
        # Events before the window must not matter; a user without a pair is one empty event.
        before = [1 + k % ITEMS for k in range(length - LENGTH)]
        rows.append([*before, *row[row > 0], last])
    offsets = np.cumsum([0, *map(len, rows)])
    items = np.concatenate(rows).astype(np.int32)
    events = histories(offsets, items, np.arange(len(rows)), LENGTH)
    np.testing.assert_array_equal(events.rows(skip_last=True), arrays["seq"])
    np.testing.assert_array_equal(events.rows(skip_last=False), arrays["seq_new"])
    assert np.diff(offsets).tolist() == (arrays["lens"] + 1).tolist()
    return Golden(arrays, section(arrays, "w"), events)


@pytest.fixture
def model(sasrec) -> EncoderModel:
    return sasrec(ITEMS, ("hbr", "nns", "dpa"), dpa__coarse=6, dpa__fine=3)[0]
