"""What devices can do, by their makers' published figures, and how many a topology has.

TPUs: cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e, tables *Key chip specifications*: peak
bfloat16, HBM, and the interconnect's bandwidth in one direction over all links of a chip (1,600
Gbps of a v5e are 200 GB/s). Prices: cloud.google.com/tpu/pricing, on demand, United States, a chip
and hour, as of June 2025. XLA multiplies float32 in one pass of bfloat16 by default, so that
bfloat16 is the peak that counts.

GPUs: NVIDIA's data sheets of A100 (SXM, 80 GB), H100 and H200 (SXM): dense TF32, which is what
float32 is multiplied in by default; NVLink in one direction; between machines eight links of 400
Gb/s for eight GPUs (A100: 200 Gb/s). No price is given, since clouds differ too much: ``--price``.
"""

from __future__ import annotations

import dataclasses
import math
import re

from pdrec_jax.errors import UserError

PRICES_OF = "June 2025"


@dataclasses.dataclass(frozen=True)
class Device:
    """A kind of device.

    Attributes:
      name: as a topology begins.
      flops: peak operations a second of matrix products of float32 at default precision.
      memory: bytes.
      bandwidth: bytes a second of its memory.
      link: bytes a second that it sends to its neighbours, over all links.
      axes: of the torus that the links make; 1 for a switch.
      outside: bytes a second to other machines; 0 where the torus reaches them.
      price: dollars an hour, or None.
      tpu: whether XLA can compile for it from afar.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    axes: int
    outside: float
    price: float | None
    tpu: bool


_TERA, _GIGA = 1e12, 1e9
DEVICES = {
    device.name: device
    for device in (
        Device("v4", 275 * _TERA, 32e9, 1228 * _GIGA, 300 * _GIGA, 3, 0, 3.22, True),
        Device("v5e", 197 * _TERA, 16e9, 819 * _GIGA, 200 * _GIGA, 2, 0, 1.20, True),
        Device("v5p", 459 * _TERA, 95e9, 2765 * _GIGA, 600 * _GIGA, 3, 0, 4.20, True),
        Device("v6e", 918 * _TERA, 32e9, 1638 * _GIGA, 400 * _GIGA, 2, 0, 2.70, True),
        Device("a100", 156 * _TERA, 80e9, 2039 * _GIGA, 300 * _GIGA, 1, 25e9, None, False),
        Device("h100", 494 * _TERA, 80e9, 3350 * _GIGA, 450 * _GIGA, 1, 50e9, None, False),
        Device("h200", 494 * _TERA, 141e9, 4800 * _GIGA, 450 * _GIGA, 1, 50e9, None, False),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices that are joined.

    Attributes:
      device: their kind.
      shape: of a TPU's torus; of GPUs (a machine, machines).
    """

    device: Device
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many devices."""
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        return f"{self.device.name}:{'x'.join(map(str, self.shape))}"

    def sending(self, span: int) -> float:
        """Bytes a second that a device sends in a collective, along one axis of the torus.

        Args:
          span: neighbouring devices among which those that take part lie.
        """
        device = self.device
        if device.outside and span > self.shape[0]:
            return device.outside
        return device.link / device.axes


def parse_topology(text: str) -> Topology:
    """Reads a topology, such as ``v5e:16x16``, ``v5p:4x4x8``, or ``h100:8x2`` for 2 machines of 8.

    Raises:
      UserError: no such kind of device, or no sizes.
    """
    name, _, sizes = text.partition(":")
    device = DEVICES.get(name)
    if device is None:
        raise UserError(
            f"--topology: one of {', '.join(DEVICES)} is expected before ':', got {text!r}"
        )
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", sizes):
        example = "4x4x4" if device.axes == 3 else "16x16" if device.tpu else "8x2"
        raise UserError(f"--topology: sizes such as {name}:{example} are expected, got {text!r}")
    shape = tuple(map(int, sizes.split("x")))
    dims = device.axes if device.tpu else 2
    if len(shape) != dims:
        raise UserError(f"--topology: {dims} sizes are expected of {name}, got {text!r}")
    return Topology(device, shape)


def parse_mesh(text: str, devices: int) -> tuple[int, int]:
    """Reads ``DATA,MODEL``, one of which may be -1.

    Raises:
      UserError: no two numbers, or they do not come to the number of devices.
    """
    parts = text.strip("()").replace(" ", "").split(",")
    if len(parts) != 2 or not all(re.fullmatch(r"-1|[1-9]\d*", part) for part in parts):
        raise UserError(f"--mesh: DATA,MODEL is expected, such as 16,16, got {text!r}")
    data, model = map(int, parts)
    if data == -1 and model != -1 and devices % model == 0:
        data = devices // model
    elif model == -1 and data != -1 and devices % data == 0:
        model = devices // data
    if data * model != devices or min(data, model) < 1:
        raise UserError(f"--mesh: sizes whose product is {devices} are expected, got {text!r}")
    return data, model


def meshes(devices: int) -> list[tuple[int, int]]:
    """All meshes (data, model) of a number of devices."""
    return [(devices // m, m) for m in range(1, devices + 1) if devices % m == 0]
