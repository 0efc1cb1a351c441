"""Hours, dollars and amounts as they are printed."""

from pdrec_jax.plan.cost import Cost
from pdrec_jax.plan.hardware import parse_topology
from pdrec_jax.plan.report import amount, seconds, total_lines


def test_cost_is_hours_times_devices(program) -> None:
    v5e = parse_topology("v5e:4x4")
    lines = total_lines([program(cost=Cost(0, 819e9, ()), runs=7200)], v5e, 1.2)
    assert lines[0].split() == ["stage", "2", "h", "38.40", "$"]
    assert "list price of June 2025" in lines[-1]
    assert "as given" in total_lines([program()], v5e, 2.0)[-1]
    assert "--price" in total_lines([program()], parse_topology("h100:8x1"), None)[-1]


def test_amounts_are_short() -> None:
    assert [amount(v, "B") for v in (0, 12, 1234, 999_600, 2.5e12)] == [
        "0 B", "12 B", "1.23 kB", "1.00 MB", "2.50 TB",
    ]  # fmt: skip
    assert [seconds(v) for v in (5e-6, 0.0123, 59, 90, 7200)] == [
        "5 us", "12.3 ms", "59 s", "1.5 min", "2 h",
    ]  # fmt: skip
