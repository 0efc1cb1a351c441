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
from pdrec_jax.recommend.fused import KEY, Recipe, Standardised, load_part
from pdrec_jax.recommend.models import Trained, choose
from pdrec_jax.workdir import Workdir, seed_folder

# How the first run's log is read, for both models.
_SAME = ("user", "item", "time", "ids", "auxiliary_time", "auxiliary_first", "learns_source")


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
      UserError: a seed is missing, a model is named twice, or the two runs read their log in other
        ways, ranked other users or among other candidates.
    """
    if (first.path.resolve(), first.key) == (second.path.resolve(), second.key):
        raise UserError(f"a model is named twice: {first.given} and {second.given}")
    if first.missing:
        raise UserError(f"{first.given}: seed {first.missing[0]} is not finished")
    (only, *others) = second.seeds.values()
    pairs = []
    for seed, run in first.seeds.items():
        other = second.seeds.get(seed) if others or second.missing else only
        if other is None:
            raise UserError(f"{second.given}: seed {seed} of {first.given} is not finished there")
        require_alike(run, other)
        for field in _SAME:
            ours, theirs = run.config.data[field], other.config.data[field]
            if ours != theirs:
                raise UserError(
                    f"{other.path}: config.data.{field} is {theirs!r}, and {ours!r} in {run.path}"
                )
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
    chosen = [_chosen(pair, (first.key, second.key)) for pair in pairs]
    files = log_files(pairs[0].first, log)
    given, data = prepare(_on_one_device(pairs[0].first.config), files)
    for pair in pairs:
        require_same_log(pair.first, data)
    made = []
    for number, (pair, models) in enumerate(zip(pairs, chosen, strict=True)):
        own = with_seed(given, _on_one_device(pair.first.config)) if number else given
        model, ranks, recipe = _fused(pair, models, own, weights)
        model["of"] = [f"{each.path.resolve().name}:{each.key}" for each in (first, second)]
        results = {
            "name": places[number].config.name,
            "protocol": own.config.protocol,
            "seed": pair.seed,
            "negatives": own.config.evaluation.negatives,
            "data": data,
            "stage": "encoder",
            "models": [model],
            "device": f"{jax.devices()[0].device_kind} x1",
        }
        made.append((results, {**users_of(own), **ranks}, recipe))
    with contextlib.ExitStack() as stack:  # nothing is written before all is there
        if whole is not None:
            stack.enter_context(whole.held(data))
            whole.reopen()
        for place, (results, arrays, recipe) in zip(places, made, strict=True):
            with place.held(data):
                place.reopen()
                recipe.save(place.path)
                place.save_per_user(arrays)
                place.finish(results)
        if whole is not None:
            every = [results for results, _, _ in made]
            seeds = [pair.seed for pair in pairs]
            whole.finish({**every[0], "seeds": seeds, "models": [_mean(every)]})


def _mean(every: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The model over all seeds, each of which chose its own weight."""
    (mean,) = over_seeds([each["models"] for each in every])
    mean["by_seed"]["weight"] = [each["models"][0]["weight"] for each in every]
    return {name: value for name, value in mean.items() if name not in ("weight", "weights")}


def _on_one_device(config: ConfigDict) -> ConfigDict:
    """A run's config without the mesh that it was trained on, which need not be here."""
    config.mesh = (1, 1)
    return config


def _chosen(pair: Pair, keys: tuple[str, str]) -> tuple[Trained, Trained]:
    first, second = (
        choose(run, key) for run, key in zip((pair.first, pair.second), keys, strict=True)
    )
    return first, second


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
    pair: Pair, models: tuple[Trained, Trained], given: Given, weights: Sequence[float]
) -> tuple[dict[str, Any], dict[str, np.ndarray], Recipe]:
    """Fuses the models of a seed: the model of the results, the ranks [U], and how it is made."""
    runs = (pair.first, pair.second)
    with pair.first.reading_results():
        (first_model,) = (
            {name: int(each[name]) for name in ("best_epoch", "epochs")}
            for each in (pair.first.results() or {})["models"]
            if each["key"] == models[0].key
        )
    split, users = given.split, given.users.encoder
    num_items, index = split.train.num_target_items, np.flatnonzero(users)
    parts = [
        Standardised(load_part(run, model, load_catalogue(run.path), BLOCK), num_items)
        for run, model in zip(runs, models, strict=True)
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
    looked_at = evaluation(test=by_test).sampled(weights)
    validated = [ranks.metrics() for ranks in looked_at]
    best = int(np.argmax([figures[SELECTION] for figures in validated]))
    weight = float(weights[best])
    sampled, full = evaluation(test=True).both(weight)
    name = " & ".join(model.name for model in models)
    if not all(ranks.finite for ranks in (*looked_at, sampled, full)):
        raise UserError(f"{pair.first.path}: a score of {name} is not finite")
    model = {
        "name": name,
        "key": KEY,
        "stage": "encoder",
        # The first model's: nothing was trained.
        **first_model,
        "users": len(index),
        "sampled": sampled.metrics(),
        "full": full.metrics(),
        "validation": None if by_test else validated[best],
        "paper": {},
        "weight": weight,
        "weights": {
            f"{each:g}": figures[SELECTION]
            for each, figures in zip(weights, validated, strict=True)
        },
    }
    ranks = {}
    for kind, found in (("sampled", sampled), ("full", full)):
        ranks[f"{KEY}/{kind}_rank"] = np.full(len(users), np.nan, np.float32)
        ranks[f"{KEY}/{kind}_rank"][users] = found.ranks
    recipe = Recipe(
        name=name,
        workdirs=_workdirs(pair),
        keys=(models[0].key, models[1].key),
        figures=(models[0].figure, models[1].figure),
        weight=weight,
        figure=validated[best][SELECTION],
        chosen_by="test" if by_test else "validation",
    )
    return model, ranks, recipe
