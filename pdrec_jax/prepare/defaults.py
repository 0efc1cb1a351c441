"""Settings of the main job that suit a log, from its figures alone."""

from __future__ import annotations

import math
from typing import Any

from pdrec_jax.prepare.figures import Figures

# On the paper's Toy, whose settings were tuned: steps before the first evaluation and before an
# early stop, at 56 steps an epoch.
_FIRST_STEPS, _LEAST_STEPS = 51 * 56, 100 * 56
_STEPS_AN_EPOCH = 1000
USUAL_NEGATIVES = 99  # in the evaluation of the paper, as of the field
_LENGTHS = (32, 64, 128, 200)


def suggest(figures: Figures, times: bool) -> dict[str, Any]:
    """Chooses settings.

    Args:
        figures: of the log.
        times: whether it has times that can be used.

    Returns:
        Values by the field's dotted path; what is not in it keeps its default.
    """
    items = figures.items
    users = figures.users - figures.short_users
    batch = 128
    while batch < 1024 and users > _STEPS_AN_EPOCH * batch:
        batch *= 2
    steps = math.ceil(users / batch)
    # Half of the items that nobody can have seen at once, so that every user has their candidates.
    free = items - figures.widest
    # 500 to draw from on Toy and on Game, where 120 came out lower: docs/search.md, docs/game.md.
    # Where the encoder picks among them, a config's own number counts, and this is the most.
    coarse = max(1, min(500, items // 25 or 1, free // 2 or 1))
    return {
        "encoder.max_length": next((n for n in _LENGTHS if n >= figures.high), _LENGTHS[-1]),
        "encoder.batch_size": batch,
        "encoder.first_evaluation": min(51, math.ceil(_FIRST_STEPS / steps)),
        "encoder.min_epochs": min(100, math.ceil(_LEAST_STEPS / steps)),
        # The paper's two sizes, for catalogues of 38 thousand items and of less than half as many.
        "diffusion.hidden": (1000,) if items >= 15_000 else (256,),
        "diffusion.patience": 20,
        "diffusion.weighting": "time" if times else "position",
        "dpa.coarse": coarse,
        "dpa.fine": max(1, min(5, coarse // 10)),
        "nns.kept": max(1, min(512, free // 4)),
        "evaluation.negatives": max(1, min(USUAL_NEGATIVES, free // 2)),
    }
