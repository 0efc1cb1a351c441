"""Compiles the programs of a job for devices that are not here, and reads what they take."""

from __future__ import annotations

import math
import os
import re
from importlib import util
from typing import Any

import jax
from jax.sharding import Mesh

from pdrec_jax.errors import UserError
from pdrec_jax.plan.cost import cost_of
from pdrec_jax.plan.hardware import Topology
from pdrec_jax.plan.hlo import Module, parse
from pdrec_jax.plan.roofline import Memory, Program
from pdrec_jax.plan.sizes import Sizes
from pdrec_jax.plan.stages import Stage
from pdrec_jax.sharding import mesh_of

_GROUPS = 128  # a long axis that is cut into groups of at most so many is long still
_LONG = 100_000  # shorter axes are as long as many another, and no burden
_NEEDED = re.compile(r"(?:Used |temporaries \()([\d.]+)([KMGT]?)\b")


class TooLarge(Exception):
    """A device's memory does not hold a program.

    Attributes:
      needed: bytes, as far as the compiler says.
    """

    def __init__(self, needed: float):
        super().__init__(needed)
        self.needed = needed


def tpu_devices(topology: Topology) -> list[Any]:
    """Describes the devices of a TPU topology, without any.

    Raises:
      UserError: the extra is missing, or there is no such topology.
    """
    if util.find_spec("libtpu") is None:
        raise UserError(
            "--topology: to compile for TPUs the extra is needed: pip install '.[tpu]' in the "
            "folder of the source code"
        )
    # It looks for a machine's own TPUs else, and says at length that there are none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    # It holds no device, so that several plans can be made at once.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    from jax.experimental import topologies

    options = {"chip_config_name": "megacore"} if topology.device.name == "v4" else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--topology: there is no {topology.name} ({reason})") from error
    return list(found.devices)


def place(devices: list[Any], shape: tuple[int, int]) -> Mesh:
    """Makes the mesh of a plan.

    Raises:
      UserError: the shape does not lie on the devices' torus.
    """
    try:
        return mesh_of(devices, *shape)
    except NotImplementedError as error:
        raise UserError(
            f"--mesh: {shape[0]},{shape[1]} does not lie on the axes of this topology; each size "
            "must be a product of some of its"
        ) from error


def compiled(stage: Stage, sizes: Sizes) -> Program:
    """Compiles a program and reads its memory and its cost.

    Raises:
      TooLarge: the compiler finds no room for it.
    """
    try:
        done = stage.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TooLarge(needed(str(error))) from error
    memory = done.memory_analysis()
    assert memory is not None  # CPUs and TPUs have one
    module = parse(done.as_text() or "")
    return Program(
        stage.name,
        stage.runs,
        stage.unit,
        Memory(
            int(memory.argument_size_in_bytes),
            int(memory.temp_size_in_bytes),
            int(memory.output_size_in_bytes - memory.alias_size_in_bytes),
        ),
        cost_of(module),
        tuple(whole_arrays(module, (sizes.users, sizes.items))),
    )


def needed(message: str) -> float:
    """Reads from the compiler's refusal how many bytes it wanted, nan where it does not say."""
    found = _NEEDED.search(message)
    scale = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    return float(found[1]) * scale[found[2]] if found else math.nan


def whole_arrays(module: Module, lengths: tuple[int, ...]) -> list[str]:
    """Finds arrays of a device that are as long as an axis that should be split.

    Args:
      module: the program of one device.
      lengths: of the axes, such as users and items; below 100,000 they are not looked for.

    Returns:
      their instructions and shapes.
    """
    found = []
    lengths = tuple(length for length in lengths if length >= _LONG)
    for name, shape in module.shapes():
        grouped = [a * b for a, b in zip(shape.dims, shape.dims[1:], strict=False) if b <= _GROUPS]
        for size in (*shape.dims, *grouped):
            # A row for the padding id, and what fills up groups and the mesh.
            if any(0 <= size - length <= 1 + _GROUPS + module.partitions for length in lengths):
                found.append(f"{name} {shape.dtype}{list(shape.dims)}")
                break
    return found
