"""Topologies and meshes as they are typed, and the published figures of devices."""

import pytest

from pdrec_jax.errors import UserError
from pdrec_jax.plan.hardware import DEVICES, meshes, parse_mesh, parse_topology


def test_topologies_are_read() -> None:
    assert parse_topology("v5e:16x16").count == 256
    assert parse_topology("v5p:4x4x8").name == "v5p:4x4x8"
    assert parse_topology("h100:8x2").count == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "v7:2x2",
            "one of v4, v5e, v5p, v6e, a100, h100, h200 is expected before ':', got 'v7:2x2'",
        ),
        ("v5e", "sizes such as v5e:16x16 are expected, got 'v5e'"),
        ("v5e:0x4", "sizes such as v5e:16x16"),
        ("v5p:4x4", "3 sizes are expected of v5p, got 'v5p:4x4'"),
        ("h100:8x2x2", "2 sizes are expected of h100"),
    ],
)
def test_a_wrong_topology_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match="--topology: ") as caught:
        parse_topology(text)
    assert message in str(caught.value)


def test_meshes_are_read() -> None:
    assert parse_mesh("4,4", 16) == (4, 4)
    assert parse_mesh("-1,8", 16) == (2, 8)
    assert parse_mesh("(16, -1)", 16) == (16, 1)
    assert meshes(6) == [(6, 1), (3, 2), (2, 3), (1, 6)]
    for text, message in [
        ("4", "DATA,MODEL is expected"),
        ("3,5", "sizes whose product is 16 are expected, got '3,5'"),
        ("-1,3", "sizes whose product is 16"),
        ("-1,-1", "sizes whose product is 16"),
        ("0,16", "DATA,MODEL is expected"),
    ]:
        with pytest.raises(UserError, match=message):
            parse_mesh(text, 16)


def test_published_figures_are_those_of_their_tables() -> None:
    # A pod of v5e: 256 chips, 1,600 Gbps a chip, 1.6 TB/s across the middle of its 16 x 16.
    v5e = parse_topology("v5e:16x16")
    per_link = v5e.device.link / (2 * v5e.device.axes)
    assert v5e.device.link * 8 == 1600e9
    assert 2 * 16 * per_link == 1.6e12
    for device in DEVICES.values():
        assert 50 < device.flops / device.bandwidth < 600
        assert device.memory < 2e11
