"""Where each tensor of the reference is in our parameters, and the way back.

A tensor of the reference is [outputs, inputs] where ours is [inputs, outputs], with two exceptions:
the tables over the catalogue keep a row an item in both. The reference's rows are numbered by its
item ids, 0 for the padding; ours follow the log's catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pdrec_jax.data.splits import Split
from pdrec_jax.errors import UserError

Arrays = Mapping[str, np.ndarray]
Params = dict[str, Any]


def rows_of_items(split: Split, slots: int, rows: int, what: str) -> np.ndarray:
    """The reference's row of each of our slots.

    Args:
        split: its target items have the reference's ids.
        slots: ours: the padding, the target items and, where they are modelled, the source items.
        rows: the reference's.
        what: for errors.

    Returns:
        `[slots]` int64. Source items, whose ids begin anew in a log of their own, take the rows
        that are left, in order.

    Raises:
        UserError: the ids are not the numbers of rows.
    """
    ids = np.asarray(split.train.item_ids[1 : 1 + split.train.num_target_items])
    if not np.issubdtype(ids.dtype, np.integer):
        raise UserError(
            f"the items of the log are text ({ids[0]!s}, ..), and the reference's models have a "
            "row for each number: a log with integers for ids is expected"
        )
    if ids.min() < 1 or ids.max() >= rows:
        raise UserError(
            f"{what}: has {rows} rows, so items of 1 to {rows - 1} are expected in the log, found "
            f"{int(ids.min())} to {int(ids.max())}"
        )
    found = np.concatenate([[0], ids.astype(np.int64)])
    if slots > len(found):
        left = np.setdiff1d(np.arange(rows), found)
        if len(left) != slots - len(found):
            raise UserError(
                f"{what}: has {len(left)} rows beside the target items, expected "
                f"{slots - len(found)} of source items"
            )
        found = np.concatenate([found, left])
    return found


class _Named:
    """The tensors of a file, each of which is asked for by name."""

    def __init__(self, arrays: Arrays, where: str):
        self.arrays, self.where, self.last = arrays, where, ""

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            listed = ", ".join(list(self.arrays)[:6])
            raise UserError(f"{self.where}: no tensor {name}, found {listed}, ..")
        self.last = name
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused below
            array = np.asarray(self.arrays[name], np.float32)
        # A score that is no number ranks the test item first.
        if not np.isfinite(array).all():
            raise UserError(f"{self.where}: {name} holds numbers that are not finite")
        return array


def count(arrays: Arrays, form: str) -> int:
    """How many of `form.format(0)`, `form.format(1)`, .. there are."""
    number = 0
    while form.format(number) in arrays:
        number += 1
    return number


def table_of(key: str, arrays: Arrays, where: str) -> int:
    """The number of rows of a file's item table.

    Args:
        key: `diffusion`, `sasrec` or `gru4rec`.
        arrays: of the file.
        where: for errors.

    Raises:
        UserError: it is missing, or its numbers are not finite.
        TypeError: it is a number alone.
    """
    get = _Named(arrays, where)
    if key == "diffusion":
        last = count(arrays, "out_layers.{}.weight") - 1
        return len(get[f"out_layers.{max(last, 0)}.weight"])
    name = {"sasrec": "sasrec_embedding_source.item_emb", "gru4rec": "source_item_emb"}[key]
    return len(get[f"{name}.weight"])


def to_ours(key: str, arrays: Arrays, rows: np.ndarray, where: str) -> Params:
    """Our parameters from a file's tensors.

    Args:
        key: `diffusion`, `sasrec` or `gru4rec`.
        arrays: of the file.
        rows: from `rows_of_items`.
        where: for errors.

    Raises:
        UserError: a tensor is missing, has another shape, or its numbers are not finite.
    """
    get = _Named(arrays, where)
    try:
        return _TO[key](get, rows)
    except UserError:
        raise
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: {get.last} has another shape than the reference's ({error})"
        ) from error


def to_reference(key: str, params: Params, rows: np.ndarray, number: int) -> dict[str, np.ndarray]:
    """The state dict that the reference's module of the same sizes loads.

    Args:
        key: `diffusion`, `sasrec` or `gru4rec`.
        params: ours.
        rows: from `rows_of_items`.
        number: of rows of the reference's tables; those without an item of ours are zero.
    """

    def spread(table: np.ndarray) -> np.ndarray:
        full = np.zeros((number, *np.shape(table)[1:]), np.float32)
        full[rows] = table
        return full

    return {name: np.asarray(a, np.float32) for name, a in _FROM[key](params, spread).items()}


def _diffusion(get: _Named, rows: np.ndarray) -> Params:
    encoders = count(get.arrays, "in_layers.{}.weight")
    decoders = count(get.arrays, "out_layers.{}.weight")
    first, last = get["in_layers.0.weight"].T, max(decoders - 1, 0)
    table = get[f"out_layers.{last}.weight"]

    def dense(name: str) -> Params:
        return {"kernel": get[f"{name}.weight"].T, "bias": get[f"{name}.bias"]}

    inner = [f"in_layers.{n}" for n in range(1, encoders)]
    inner += [f"out_layers.{n}" for n in range(last)]
    params: Params = {
        "timestep": dense("emb_layer"),
        "item_kernel": first[: len(table)][rows],
        "time_kernel": first[len(table) :],
        "first_bias": get["in_layers.0.bias"],
        "output": {"kernel": table[rows], "bias": get[f"out_layers.{last}.bias"][rows]},
    }
    if inner:
        params["middle"] = {n: dense(name) for n, name in enumerate(inner)}
    return params


def _of_diffusion(params: Params, spread: Any) -> dict[str, np.ndarray]:
    middle = [params["middle"][n] for n in sorted(params.get("middle", {}))]
    half = len(middle) // 2

    def dense(layer: Params) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(layer["kernel"]).T, layer["bias"]

    first = np.concatenate([spread(params["item_kernel"]), params["time_kernel"]]).T
    layers = {
        "emb_layer": dense(params["timestep"]),
        "in_layers.0": (first, params["first_bias"]),
        **{f"in_layers.{n + 1}": dense(layer) for n, layer in enumerate(middle[:half])},
        **{f"out_layers.{n}": dense(layer) for n, layer in enumerate(middle[half:])},
        f"out_layers.{len(middle) - half}": (
            spread(params["output"]["kernel"]),
            spread(params["output"]["bias"]),
        ),
    }
    return {
        f"{name}.{part}": array
        for name, (weight, bias) in layers.items()
        for part, array in (("weight", weight), ("bias", bias))
    }


_TOWER = "sasrec_embedding_{}."
_PARTS = ("query", "key", "value")


def _sasrec(get: _Named, rows: np.ndarray) -> Params:
    tower = _TOWER.format("source")

    def norm(name: str) -> Params:
        return {"scale": get[f"{tower}{name}.weight"], "bias": get[f"{tower}{name}.bias"]}

    def pointwise(name: str) -> np.ndarray:
        kernel = get[name]
        if kernel.ndim != 3 or kernel.shape[2] != 1:
            raise ValueError(f"{kernel.shape} for a convolution of one cell")
        return kernel[:, :, 0].T

    def block(n: int) -> Params:
        attention, forward = f"{tower}attention_layers.{n}", f"{tower}forward_layers.{n}.conv"
        weights = np.split(get[f"{attention}.in_proj_weight"], 3)
        # The key's bias cancels in the softmax, also against the padded keys: ours has none.
        query_bias, _, value_bias = np.split(get[f"{attention}.in_proj_bias"], 3)
        return {
            "attention_norm": norm(f"attention_layernorms.{n}"),
            "attention": {
                **{name: part.T for name, part in zip(_PARTS, weights, strict=True)},
                "query_bias": query_bias,
                "value_bias": value_bias,
                "output": get[f"{attention}.out_proj.weight"].T,
                "output_bias": get[f"{attention}.out_proj.bias"],
            },
            "forward_norm": norm(f"forward_layernorms.{n}"),
            "forward": {
                "inner": pointwise(f"{forward}1.weight"),
                "inner_bias": get[f"{forward}1.bias"],
                "outer": pointwise(f"{forward}2.weight"),
                "outer_bias": get[f"{forward}2.bias"],
            },
        }

    number = count(get.arrays, tower + "attention_layers.{}.in_proj_weight")
    return {
        "item_embedding": get[f"{tower}item_emb.weight"][rows],
        "position_embedding": get[f"{tower}pos_emb.weight"],
        "blocks": {n: block(n) for n in range(number)},
        "last_norm": norm("last_layernorm"),
    }


def _of_sasrec(params: Params, spread: Any) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {
        "item_emb.weight": spread(params["item_embedding"]),
        "pos_emb.weight": params["position_embedding"],
    }

    def norm(name: str, layer: Params) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = layer["scale"], layer["bias"]

    for n, block in params["blocks"].items():
        attention, forward = block["attention"], block["forward"]
        norm(f"attention_layernorms.{n}", block["attention_norm"])
        norm(f"forward_layernorms.{n}", block["forward_norm"])
        name = f"attention_layers.{n}"
        weights = [np.asarray(attention[part]).T for part in _PARTS]
        none = np.zeros_like(attention["query_bias"])
        biases = [attention["query_bias"], none, attention["value_bias"]]
        found[f"{name}.in_proj_weight"] = np.concatenate(weights)
        found[f"{name}.in_proj_bias"] = np.concatenate(biases)
        found[f"{name}.out_proj.weight"] = np.asarray(attention["output"]).T
        found[f"{name}.out_proj.bias"] = attention["output_bias"]
        for conv, part in (("conv1", "inner"), ("conv2", "outer")):
            kernel = np.asarray(forward[part]).T
            found[f"forward_layers.{n}.{conv}.weight"] = kernel[:, :, None]
            found[f"forward_layers.{n}.{conv}.bias"] = forward[f"{part}_bias"]
    norm("last_layernorm", params["last_norm"])
    # The second tower is made and saved by the reference, and never used.
    return {
        _TOWER.format(tower) + name: array
        for tower in ("source", "target")
        for name, array in found.items()
    }


def _gru4rec(get: _Named, rows: np.ndarray) -> Params:
    def gates(name: str) -> np.ndarray:
        weight = get[name]
        return weight.reshape(3, -1, weight.shape[1]).transpose(0, 2, 1)

    return {
        "item_embedding": get["source_item_emb.weight"][rows],
        "input": gates("gru_source.weight_ih_l0"),
        "input_bias": get["gru_source.bias_ih_l0"].reshape(3, -1),
        "hidden": gates("gru_source.weight_hh_l0"),
        "hidden_bias": get["gru_source.bias_hh_l0"].reshape(3, -1),
        "start": get["h0_source"].reshape(-1),
    }


def _of_gru4rec(params: Params, spread: Any) -> dict[str, np.ndarray]:
    def gates(kernel: Any) -> np.ndarray:
        turned = np.asarray(kernel).transpose(0, 2, 1)
        return turned.reshape(-1, turned.shape[2])

    found: dict[str, np.ndarray] = {}
    for tower in ("source", "target"):  # the second is never used
        found |= {
            f"{tower}_item_emb.weight": spread(params["item_embedding"]),
            f"gru_{tower}.weight_ih_l0": gates(params["input"]),
            f"gru_{tower}.weight_hh_l0": gates(params["hidden"]),
            f"gru_{tower}.bias_ih_l0": np.asarray(params["input_bias"]).reshape(-1),
            f"gru_{tower}.bias_hh_l0": np.asarray(params["hidden_bias"]).reshape(-1),
            f"h0_{tower}": np.asarray(params["start"]).reshape(1, 1, -1),
        }
    return found


_TO = {"diffusion": _diffusion, "sasrec": _sasrec, "gru4rec": _gru4rec}
_FROM = {"diffusion": _of_diffusion, "sasrec": _of_sasrec, "gru4rec": _of_gru4rec}
