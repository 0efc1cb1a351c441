"""Plans a job on one mesh, and where it does not fit looks for one on which it would."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ml_collections import ConfigDict

from pdrec_jax.errors import UserError
from pdrec_jax.plan import analytic
from pdrec_jax.plan.compile import TooLarge, compiled, place, tpu_devices
from pdrec_jax.plan.hardware import Topology, meshes
from pdrec_jax.plan.report import amount, program_lines, total_lines
from pdrec_jax.plan.roofline import Program, fits
from pdrec_jax.plan.sizes import Sizes
from pdrec_jax.plan.stages import stages

# From a mesh to its programs, each when it is asked for.
Programs = Callable[[tuple[int, int]], Iterable[Program]]

TOO_LARGE = 3  # exit status


def programs_of(
    config: ConfigDict, sizes: Sizes, topology: Topology, devices: list[Any] | None = None
) -> Programs:
    """Returns what makes the programs of a mesh: compiled for TPUs, estimated for GPUs.

    Args:
      config: of the job.
      sizes: of its log.
      topology: of the devices.
      devices: to compile for; None for those of the topology.
    """
    if not topology.device.tpu and devices is None:
        return lambda shape: analytic.programs(config, sizes, *shape)
    found = tpu_devices(topology) if devices is None else devices

    def compile_all(shape: tuple[int, int]) -> Iterator[Program]:
        for stage in stages(config, sizes, place(found, shape)):
            yield compiled(stage, sizes)

    return compile_all


def first_misfit(programs: Iterable[Program], topology: Topology) -> str | None:
    """Says what does not fit, None where all does."""
    room = topology.device.memory
    try:
        for program in programs:
            if not fits(program, topology):
                return f"{program.name}: {amount(program.memory.total, 'B')} of {amount(room, 'B')}"
    except TooLarge as error:
        needed = "" if math.isnan(error.needed) else f"{amount(error.needed, 'B')} of "
        return f"{needed}{amount(room, 'B')}, as the compiler counts"
    return None


def worth_trying(
    config: ConfigDict, sizes: Sizes, topology: Topology, shape: tuple[int, int]
) -> bool:
    """Whether a device could hold the arguments on a mesh, by formulas, before compiling for it."""
    room = topology.device.memory
    found = analytic.programs(config, sizes, *shape)
    return all(program.memory.arguments <= 1.1 * room for program in found)


def others(shape: tuple[int, int], topology: Topology) -> list[tuple[int, int]]:
    """The other meshes of the same devices, those that are most alike first."""
    rest = [mesh for mesh in meshes(topology.count) if mesh != shape]
    # More parts of the tables first: they are what seldom fits.
    return sorted(rest, key=lambda m: (abs(math.log(m[1] / shape[1])), -m[1]))


def run(
    config: ConfigDict,
    sizes: Sizes,
    topology: Topology,
    shape: tuple[int, int],
    price: float | None,
    devices: list[Any] | None = None,
) -> int:
    """Prints the plan of a job.

    Args:
      config: of the job.
      sizes: of its log.
      topology: of the devices.
      shape: of the mesh, (data, model).
      price: dollars an hour of a device, None for the list price.
      devices: see ``programs_of``.

    Returns:
      0, or 3 where it does not fit.

    Raises:
      UserError: no such topology.
    """
    make = programs_of(config, sizes, topology, devices)
    how = "compiled" if topology.device.tpu or devices else "estimated by formulas"
    if sizes.simulated:
        print("SIMULATED DATA: a run on a real log has other sizes and settings; see --users")
    print(
        f"{config.name} on {topology.name}, mesh (data {shape[0]}, model {shape[1]}), {how}\n"
        f"{sizes.users:,} users, {sizes.items:,} items, {sizes.lengths.mean() + 2:.4g} events each "
        f"({sizes.source}); H {'x'.join(map(str, config.diffusion.hidden))}, "
        f"D {config.encoder.width}, epochs {config.diffusion.epochs} and {config.encoder.epochs}\n"
    )
    done: list[Program] = []

    def shown() -> Iterator[Program]:
        for program in make(shape):
            print("\n".join(program_lines(program, topology)) + "\n", flush=True)
            done.append(program)
            yield program

    misfit = first_misfit(shown(), topology)
    if misfit is None:
        price = topology.device.price if price is None else price
        print("\n".join(total_lines(done, topology, price)))
        return 0
    print(f"does not fit: {misfit}")
    for other in others(shape, topology):
        if not worth_trying(config, sizes, topology, other):
            continue
        with contextlib.suppress(UserError):  # a mesh that does not lie on the torus
            if first_misfit(make(other), topology) is not None:
                continue
            print(f"it would fit on --mesh={other[0]},{other[1]}")
            break
    else:
        print(f"nor on any other mesh of {topology.name}: more devices, or smaller batches and H")
    return TOO_LARGE
