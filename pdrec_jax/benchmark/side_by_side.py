"""Stages of this package in turns with those of the PyTorch reference, on one log and one device.

"Model alone" is the reference's own model, loss and optimiser on a batch that is ready; "as
shipped" is its script as its README starts it, with its sampler processes, and one user at a time
where it goes user by user. Both have our sizes. See ``reference`` for how they run.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from pdrec_jax.benchmark import diffusion_step, encoder_step, evaluation, preferences
from pdrec_jax.benchmark.contest import Comparison, Contestant
from pdrec_jax.benchmark.reference import BASE_MODELS, DIFFUSION, ENCODER, Script, running
from pdrec_jax.benchmark.sizes import Sizes
from pdrec_jax.benchmark.workload import make_workload

_STEPS = 2  # of the diffusion model in one call of the reference
_ENCODER_STEPS = 4
_USERS = 5  # whom the reference scores one by one in one call
_RANKED = 100  # whom its encoder ranks in one call
_BATCH = 400  # users of its reverse loop where it gets a batch

ALONE, SHIPPED = "reference, model alone", "reference, as shipped"


@dataclasses.dataclass(frozen=True)
class _Stage:
    """What of the reference stands beside a stage.

    Attributes:
      script: that does the work.
      ours: yields the stage's comparisons.
      chosen: the rows of them that take part.
      theirs: makes the reference's contestants.
      encoder: that takes part, where one does.
    """

    script: str
    ours: Callable[[Sizes, str], Iterator[Comparison]]
    chosen: Callable[[Comparison, Contestant], bool]
    theirs: Callable[[Script], tuple[Contestant, ...]]
    encoder: str | None = None

    def sizes(self, given: Sizes) -> Sizes | None:
        """Returns the sizes of its work, None where its encoder is not asked for."""
        if self.encoder is None:
            return given
        if self.encoder not in given.encoders:
            return None
        return dataclasses.replace(given, encoder=self.encoder)


def _diffusion(script: Script) -> tuple[Contestant, ...]:
    return (
        script.contestant(ALONE, "diffusion step", _STEPS),
        script.contestant(SHIPPED, "step as shipped", _STEPS),
    )


def _preferences(script: Script) -> tuple[Contestant, ...]:
    return (
        script.contestant(f"its loop, batch {_BATCH}", "reverse", _BATCH),
        script.contestant(SHIPPED, "preferences", _USERS),
    )


def _encoder(script: Script) -> tuple[Contestant, ...]:
    return (
        script.contestant(ALONE, "encoder step", _ENCODER_STEPS),
        script.contestant(SHIPPED, "step as shipped", _ENCODER_STEPS),
    )


def _all_plugins(comparison: Comparison, contestant: Contestant) -> bool:
    return contestant.twin is not None and "NNS" in comparison.title


STAGES: dict[str, tuple[_Stage, ...]] = {
    "diffusion_step": (
        _Stage(DIFFUSION, diffusion_step.comparisons, lambda _, row: True, _diffusion),
    ),
    "preferences": (_Stage(ENCODER, preferences.comparisons, lambda _, row: True, _preferences),),
    "encoder_step": tuple(
        _Stage(ENCODER, encoder_step.comparisons, _all_plugins, _encoder, encoder)
        for encoder in BASE_MODELS
    ),
    "evaluation": (
        _Stage(
            DIFFUSION,
            evaluation.comparisons,
            lambda _, row: row.name.startswith("TI-DiffRec"),
            lambda script: (script.contestant(SHIPPED, "diffusion evaluation", _USERS),),
        ),
        *(
            _Stage(
                ENCODER,
                evaluation.comparisons,
                lambda _, row: not row.name.startswith("TI-DiffRec"),
                lambda script: (script.contestant(SHIPPED, "encoder evaluation", _RANKED),),
                encoder,
            )
            for encoder in BASE_MODELS
        ),
    ),
}


def comparisons(stage: str, sizes: Sizes, source: str, directory: Path) -> Iterator[Comparison]:
    """Yields a stage's comparisons with the reference; none for a stage that it does not have.

    Args:
      stage: a key of ``suite.STAGES``.
      sizes: of the work.
      source: see ``workload.make_workload``.
      directory: of the reference's clone.

    Raises:
      UserError: see ``reference``.
    """
    for part in STAGES.get(stage, ()):
        own = part.sizes(sizes)
        if own is None:
            continue
        split = make_workload(own, source).split
        for comparison in part.ours(own, source):
            ours = tuple(
                dataclasses.replace(row, twin=None)
                for row in comparison.contestants
                if part.chosen(comparison, row)
            )
            if not ours:
                continue
            with running(directory, part.script, own, split) as script:
                yield dataclasses.replace(
                    comparison,
                    title=f"beside the reference: {comparison.title}",
                    contestants=(*part.theirs(script), *ours),
                    agree=dict,
                    agreement="",
                    notes=(),
                )
