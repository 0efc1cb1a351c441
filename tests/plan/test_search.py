"""What does not fit is refused, and a mesh named on which it would."""

from collections.abc import Iterator

import numpy as np
import pytest

from pdrec_jax.plan import analytic, search
from pdrec_jax.plan.compile import TooLarge
from pdrec_jax.plan.hardware import parse_topology
from pdrec_jax.plan.roofline import Program, fits
from pdrec_jax.plan.sizes import Sizes
from pdrec_jax.settings import default_config


def test_what_does_not_fit_is_refused_with_a_mesh_that_would(
    program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def by_model(config: object, sizes: object, data: int, model: int) -> Iterator[Program]:
        yield program(1e9)
        yield program(8e11 / model)

    monkeypatch.setattr(analytic, "programs", by_model)
    sizes = Sizes(100, 300, np.full(1, 9), "given")
    h100 = parse_topology("h100:8x2")
    assert search.run(default_config(), sizes, h100, (16, 1), None) == 3
    out = capsys.readouterr().out
    assert "does not fit: stage: step: 800 GB of 80.0 GB" in out
    # The first that is large enough, not the largest.
    assert out.endswith("it would fit on --mesh=1,16\n")
    assert search.run(default_config(), sizes, h100, (1, 16), None) == 0
    monkeypatch.setattr(analytic, "programs", lambda *_: iter([program(1e15)]))
    assert search.run(default_config(), sizes, h100, (1, 16), None) == 3
    assert "nor on any other mesh of h100:8x2" in capsys.readouterr().out


def test_what_the_compiler_refuses_does_not_fit(program) -> None:
    def refused(size: float) -> Iterator[Program]:
        raise TooLarge(size)
        yield

    v5e = parse_topology("v5e:4x4")
    found = search.first_misfit(refused(20e9), v5e)
    assert found == "20.0 GB of 16.0 GB, as the compiler counts"
    assert search.first_misfit(refused(float("nan")), v5e) == "16.0 GB, as the compiler counts"
    assert search.first_misfit([program(15.9e9)], v5e) is None
    assert not fits(program(16.1e9), v5e)
