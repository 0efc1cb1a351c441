"""Fuses two models of finished runs, seed by seed, and leaves what ``compare`` reads."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from pdrec_jax.compare import Candidate, require_alike
from pdrec_jax.data.catalogue import load_catalogue
from pdrec_jax.data.log_of_run import log_files, require_same_log
from pdrec_jax.errors import UserError
from pdrec_jax.evaluation.metrics import SELECTION
from pdrec_jax.evaluation.over_seeds import over_seeds
from pdrec_jax.experiment import users_of
from pdrec_jax.fuse.ranking import BLOCK, Evaluation
from pdrec_jax.given import Given, prepare, with_seed
from pdrec_jax.recommend.fused import KEY, Recipe, Standardised
from pdrec_jax.recommend.models import choose, load_model
from pdrec_jax.workdir import Workdir, seed_folder


@dataclasses.dataclass(frozen=True)
class Pair:
    """The models of one seed.

    Attributes:
      seed: of the first.
      first: its run.
      second: the run of the other, of the same seed or of the only one that it has.
    """

    seed: int
    first: Workdir
    second: Workdir


def pairs_of(first: Candidate, second: Candidate) -> list[Pair]:
    """Pairs the seeds of two models.

    Args:
      first: whose seeds are fused, all of them.
      second: has the same seeds, or one, which serves for all.

    Raises:
      UserError: a seed is missing, or the two runs ranked other users or among other candidates.
    """
    if first.missing:
        raise UserError(f"{first.given}: seed {first.missing[0]} is not finished")
    (only, *others) = second.seeds.values()
    pairs = []
    for seed, run in first.seeds.items():
        other = second.seeds.get(seed) if others or second.missing else only
        if other is None:
            raise UserError(f"{second.given}: seed {seed} of {first.given} is not finished there")
        require_alike(run, other)
        pairs.append(Pair(seed, run, other))
    return pairs


def fuse(
    first: Candidate,
    second: Candidate,
    out: Path,
    weights: Sequence[float],
    log: Sequence[Path] = (),
) -> None:
    """Ranks by both models' scores, and writes a finished run for each seed.

    Args:
      first: the model whose score counts once.
      second: the one that is added.
      out: directory for the results, which may hold those of an earlier call of the same models.
      weights: of the second; validation chooses (under ``reference`` the test, as it does all).
      log: where the runs' logs are now, if not where they were.

    Raises:
      UserError: a run, model or log is missing or damaged, the log has changed, or ``out`` is
        taken.
    """
    pairs = pairs_of(first, second)
    several = len(pairs) > 1
    home = Workdir.open(first.path, several=True)
    places = [
        _place(out / seed_folder(pair.seed) if several else out, pair.first.config, home)
        for pair in pairs
    ]
    for pair, place in zip(pairs, places, strict=True):
        _require_same_models(place.path, pair, (first.key, second.key))
    whole = _place(out, home.config, home) if several else None
    files = log_files(pairs[0].first, log)
    given, data = prepare(pairs[0].first.config, files)
    for pair in pairs:
        require_same_log(pair.first, data)
    found = []
    with contextlib.ExitStack() as stack:
        if whole is not None:
            stack.enter_context(whole.held(data))
            whole.reopen()
        for pair, place in zip(pairs, places, strict=True):
            own = with_seed(given, pair.first.config)
            model, ranks, recipe = _fused(pair, first.key, second.key, own, weights)
            results = {
                "name": place.config.name,
                "protocol": own.config.protocol,
                "seed": pair.seed,
                "negatives": own.config.evaluation.negatives,
                "data": data,
                "stage": "encoder",
                "models": [model],
                "device": f"{jax.devices()[0].device_kind} x1",
            }
            with place.held(data):
                place.reopen()
                recipe.save(place.path)
                place.save_per_user({**users_of(own), **ranks})
                place.finish(results)
            found.append(results)
        if whole is not None:
            head = {**found[0], "seeds": [pair.seed for pair in pairs]}
            whole.finish({**head, "models": over_seeds([each["models"] for each in found])})


def _place(path: Path, config: ConfigDict, home: Workdir) -> Workdir:
    """Opens the directory for results, whose config has a name that no command trains under."""
    if (path / "phases").exists():
        raise UserError(f"--out: {path}: holds a run that was trained; name another directory")
    config.name = f"{config.name}-{KEY}"
    place = Workdir(path, config, home.data["source"], flag="--out")
    place.require_log(home.data["files"])
    place.require_unlocked()
    return place


def _require_same_models(path: Path, pair: Pair, keys: tuple[str, str]) -> None:
    """Checks that what an earlier call has left is of the same models, which it then replaces."""
    left = Recipe.read(path)
    if left is not None and (left.workdirs, left.keys) != (_workdirs(pair), keys):
        raise UserError(
            f"--out: {path}: holds {left.name}, other models than these; name another directory"
        )


def _workdirs(pair: Pair) -> tuple[str, str]:
    return str(pair.first.path.resolve()), str(pair.second.path.resolve())


def _fused(
    pair: Pair, first_key: str, second_key: str, given: Given, weights: Sequence[float]
) -> tuple[dict[str, Any], dict[str, np.ndarray], Recipe]:
    """Fuses the models of a seed: the model of the results, the ranks [U], and how it is made."""
    trained = [choose(pair.first, first_key), choose(pair.second, second_key)]
    split, users = given.split, given.users.encoder
    num_items, index = split.train.num_target_items, np.flatnonzero(users)
    parts = [
        Standardised(load_model(place, model, load_catalogue(place.path), BLOCK), num_items)
        for place, model in zip((pair.first, pair.second), trained, strict=True)
    ]

    def evaluation(*, test: bool) -> Evaluation:
        return Evaluation(
            parts=(parts[0], parts[1]),
            history=split.before_test() if test else split.train,
            users=index,
            candidates=given.candidates if test else given.validation,
            half_ties=given.protocol.half_ties,
            num_items=num_items,
        )

    by_test = given.protocol.select_on_test
    looked_at = [ranks.metrics() for ranks in evaluation(test=by_test).sampled(weights)]
    best = int(np.argmax([figures[SELECTION] for figures in looked_at]))
    weight = float(weights[best])
    test = evaluation(test=True)
    (sampled,), full = test.sampled([weight]), test.full(weight)
    if not (sampled.finite and full.finite):
        names = f"{trained[0].name} or of {trained[1].name}"
        raise UserError(f"{pair.first.path}: a score of {names} is not finite")
    name = " & ".join(model.name for model in trained)
    first_results = (pair.first.results() or {})["models"]
    (told,) = (model for model in first_results if model["key"] == trained[0].key)
    model = {
        "name": name,
        "key": KEY,
        "stage": "encoder",
        "best_epoch": told["best_epoch"],
        "epochs": told["epochs"],
        "users": len(index),
        "sampled": sampled.metrics(),
        "full": full.metrics(),
        "validation": None if by_test else looked_at[best],
        "paper": {},
        "weight": weight,
        "weights": {f"{w:g}": each[SELECTION] for w, each in zip(weights, looked_at, strict=True)},
    }
    ranks = {}
    for kind, each in (("sampled", sampled), ("full", full)):
        ranks[f"{KEY}/{kind}_rank"] = np.full(len(users), np.nan, np.float32)
        ranks[f"{KEY}/{kind}_rank"][users] = each.ranks
    recipe = Recipe(
        name,
        _workdirs(pair),
        (first_key, second_key),
        weight,
        looked_at[best][SELECTION],
        "test" if by_test else "validation",
    )
    return model, ranks, recipe
