"""What is compiled: a small job for 8 virtual processors, in a process of its own; and refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pdrec_jax.plan.compile import needed, whole_arrays
from pdrec_jax.plan.hlo import parse

ROOT = Path(__file__).resolve().parents[2]
ITEMS, DEVICES = 160_013, 8


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_small.py")],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
        },
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def programs(found: dict[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in found.items() if name != "not split"}


def test_every_stage_is_there(found: dict[str, Any]) -> None:
    assert list(programs(found)) == [
        "diffusion: train",
        "diffusion: rank candidates",
        "diffusion: rank all items",
        "preferences: score",
        "preferences: cut pools",
        "SASRec+HBR+NNS+DPA: train",
        "encoders: rank candidates",
        "encoders: rank all items",
        "diffusion: train, other options",
        "diffusion: rank candidates, other options",
    ]


def test_nothing_as_long_as_users_or_items_is_whole(found: dict[str, Any]) -> None:
    assert {name: one["whole"] for name, one in programs(found).items() if one["whole"]} == {}
    # The same check on a mesh that does not split the catalogue.
    assert any(f"{ITEMS + 1}" in shape for shape in found["not split"]["whole"])


def test_a_device_holds_its_part_of_the_tables(found: dict[str, Any]) -> None:
    rows = -(-(ITEMS + 1) // 4)
    # Both tables of width 16 and the bias, with two moments; a table of width 16 likewise.
    for name, floats in (("diffusion: train", 33), ("SASRec+HBR+NNS+DPA: train", 16)):
        state, arguments = 3 * 4 * floats * rows, found[name]["compiled"]["arguments"]
        assert state < arguments < 1.1 * state


# How far a formula may be from the program: what it leaves out is small beside what grows with the
# catalogue. Of bytes a processor's program passes more, since it fuses less.
BOUNDS = {
    "runs": (1, 1),
    "flops": (0.9, 1.4),
    "arguments": (0.95, 1.1),
    "sent": (0.7, 1.5),
    "bytes": (1, 3),
}


@pytest.mark.parametrize("quantity", BOUNDS)
def test_formulas_agree_with_programs(found: dict[str, Any], quantity: str) -> None:
    low, high = BOUNDS[quantity]
    ratios = {
        name: one["compiled"][quantity] / one["estimated"][quantity]
        for name, one in programs(found).items()
        if one["estimated"][quantity]
    }
    assert {name: ratio for name, ratio in ratios.items() if not low <= ratio <= high} == {}
    assert len(ratios) >= 9


def test_formulas_know_the_memory_of_training(found: dict[str, Any]) -> None:
    names = "diffusion: train", "SASRec+HBR+NNS+DPA: train", "diffusion: train, other options"
    for name in names:
        compiled, estimated = (
            found[name][how]["arguments"] + found[name][how]["temporaries"]
            for how in ("compiled", "estimated")
        )
        assert 0.8 < compiled / estimated < 1.25


def module_of(*shapes: str) -> str:
    lines = "\n".join(f"  %x{n} = {shape} parameter({n})" for n, shape in enumerate(shapes))
    return f"HloModule m, num_partitions=8\n\nENTRY %main () -> f32[] {{\n{lines}\n}}\n"


def test_long_arrays_are_found() -> None:
    module = parse(
        module_of(
            "f32[12501,64]{1,0}",  # a part
            "f32[100008,64]{1,0}",  # all of it, with what fills up the mesh
            "f32[4,100001]{1,0}",
            "s32[1563,64]{1,0}",  # all of it in groups
            "f32[200000]{0}",  # of users
            "f32[99999]{0}",
            "f32[120000]{0}",
        )
    )
    assert whole_arrays(module, (20_000, 1_563)) == []  # too short to tell
    assert whole_arrays(module, (200_000, 100_000)) == [
        "x1 f32[100008, 64]", "x2 f32[4, 100001]", "x3 s32[1563, 64]", "x4 f32[200000]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.", 20.5 * 2**30),
        ("the total memory required for HLO temporaries (512.0M) exceeds HBM", 512 * 2**20),
    ],
)
def test_the_compilers_refusals_are_read(message: str, size: float) -> None:
    assert needed(message) == size
    assert np.isnan(needed("no room"))
