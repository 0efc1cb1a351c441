"""A run from its config to its results: the phases in order, each done once and then kept."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from pdrec_jax import compilation, memory, other_runs, phases, processes, run_models, seeds
from pdrec_jax.data import sources
from pdrec_jax.data.catalogue import CATALOGUE, catalogue_of, save_catalogue
from pdrec_jax.diffusion.preferences import Preferences
from pdrec_jax.errors import warn
from pdrec_jax.evaluation.groups import by_group
from pdrec_jax.given import Given, Prepared, prepare
from pdrec_jax.metric_log import MetricLog, require_boards
from pdrec_jax.overrides import apply_overrides, validate
from pdrec_jax.phases import Outcome
from pdrec_jax.report.report import write_report
from pdrec_jax.report.tables import results_table, title
from pdrec_jax.seeds import complete_report, open_log, preferences_at_hand, run_head
from pdrec_jax.workdir import CONFIG, PER_USER, RESULTS, Workdir

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def run(config: ConfigDict, by_hand: Collection[str], workdir: str | None) -> dict[str, Any]:
    """Runs or resumes an experiment, and prints its table.

    Whatever is wrong with config or data is found before the workdir is touched, so that a mended
    command finds nothing in its way.

    Args:
      config: as resolved from file and command line.
      by_hand: the fields that the command line sets.
      workdir: directory of the run; None for one named after the experiment.

    Returns:
      the results, as they stand in the workdir's results.json.

    Raises:
      UserError: anything the user can mend.
    """
    memory.forget_peak()
    compilation.require_32_bits()
    config, files = resolve(config, by_hand)
    compilation.use_cache(config.compilation_cache)
    path = Path(workdir or default_workdir(config, files is None))
    begun = (path / CONFIG).is_file()  # which goes on as it is
    if phases.needs_preferences(config) and not begun:
        other_runs.require_like_source(config, by_hand)
    if config.seeds == 1:
        return run_one(config, files, path)
    return seeds.run(config, files, path, run_one)


def resolve(config: ConfigDict, by_hand: Collection[str]) -> tuple[ConfigDict, list[Path] | None]:
    """Checks a config, finds its logs, and shortens the run where there are none.

    Returns:
      the config, and the logs, None where one is simulated.

    Raises:
      UserError: anything the user can mend.
    """
    config = sources.validated(config, by_hand)
    files = sources.find_files(config)
    if files is None:
        config = apply_overrides(config, by_hand)
        validate(config)
    phases.require_encoders(config)
    if config.tensorboard:
        require_boards()
    return config, files


def run_one(
    config: ConfigDict,
    files: list[Path] | None,
    path: Path,
    prepared: Prepared | None = None,
) -> dict[str, Any]:
    """Runs or resumes the run of one seed.

    Args:
      config: from ``resolve``.
      files: likewise.
      path: directory of the run.
      prepared: from ``given.prepare`` where this is one of several seeds, whose table is printed
        in place of theirs.

    Returns:
      the results.

    Raises:
      UserError: anything the user can mend.
    """
    begun, alone = time.monotonic(), prepared is None
    compiling = compilation.seconds_spent()
    head = run_head(config, files)
    place = Workdir(path, config, head["data"]["source"])
    if alone:
        print(title(head), flush=True)
    for name in run_models.damaged(config, place):
        place.phases.undo(name)
    done = place.results_of(config.stage)
    if done is not None:
        place.require_log(sources.listed(files))
    whole = not place.phases.undone and done is not None
    if processes.found_by_first(whole, str(place.path / RESULTS)):
        assert done is not None
        _complete(config, files, place, done, prepared)
        if alone:
            with place.reading_results():
                text = results_table(done)
            print(f"{place.path}: finished, these are its results", flush=True)
            print(text, flush=True)
        return done

    place.require_unlocked()
    given, data = prepared or prepare(config, files)
    given = dataclasses.replace(given, config=config)
    preferences = preferences_at_hand(given, place)
    with place.held(data), open_log(config, place) as log:
        place.drop_undone()
        if processes.is_first():
            save_catalogue(place.path, catalogue_of(given.split, files))
        dropped = f", {data['dropped_users']:,} users with fewer than 3 events dropped"
        log.phase(
            f"data: {data['users']:,} users, {data['items']:,} items, {data['events']:,} events"
            + dropped * (data["dropped_users"] > 0)
            + f", seed {config.seed}" * (not alone)
        )
        times = {"data": time.monotonic() - begun}
        models, arrays = _run_phases(given, preferences, place, log, times)
        times |= {
            "total": sum(times.values()),
            "compiling": compilation.seconds_spent() - compiling,
        }
        results = {
            **head,
            "stage": _stage(config, models),
            "data": data,
            "models": models,
            "plugins": (place.phases.find("preferences") or {}).get("effects", {}),
            "times": {name: round(spent, 2) for name, spent in times.items()},
            "peak_memory_bytes": _peak_memory(place),
            "versions": _versions(),
            "device": f"{jax.devices()[0].device_kind} x{jax.device_count()}",
        }
        per_user = {**users_of(given), **arrays}
        place.save_per_user(per_user)
        ranks = {name: each[None] for name, each in arrays.items() if name.endswith("_rank")}
        results["groups"] = by_group(models, ranks, per_user)
        if processes.is_first():
            log.phase(f"report: {write_report(place.path, results, log.read(), per_user)}")
        place.finish(results)
    if alone:
        print(results_table(results), flush=True)
    return results


def _complete(
    config: ConfigDict,
    files: list[Path] | None,
    place: Workdir,
    done: dict[str, Any],
    prepared: Prepared | None,
) -> None:
    """Makes what a finished run lacks of its files, where it can be made."""
    if jax.process_count() == 1:
        # Of a run older than `recommend` there is none.
        catalogue = (place.path / CATALOGUE).is_file()
        ranks = None if (place.path / PER_USER).is_file() else place.ranks_of(done)
        if not catalogue or ranks is not None:
            given, data = prepared or prepare(config, files)
            with place.held(data):
                if not catalogue:
                    save_catalogue(place.path, catalogue_of(given.split, files))
                if ranks is not None:
                    warn(f"{place.path / PER_USER}: missing; it is put together from the phases")
                    place.save_per_user({**users_of(given), **ranks})
    complete_report(config, place)


def users_of(given: Given) -> dict[str, np.ndarray]:
    """What is kept of every user beside the ranks, [U] each.

    ``item_popularity`` is how many training events the test item has.
    """
    train = given.split.train
    return {
        "users": train.user_ids,
        "history_length": train.lengths,
        "item_popularity": train.popularity[given.split.test_items],
    }


def default_workdir(config: ConfigDict, simulated: bool) -> Path:
    """Returns ``runs/NAME-PROTOCOL-SEED``, marked where the log is simulated or seeds several."""
    mark = "-seeds" * (config.seeds > 1) + "-simulated" * simulated
    return Path("runs") / f"{config.name}-{config.protocol}-{config.seed}{mark}"


def _stage(config: ConfigDict, models: list[dict[str, Any]]) -> str:
    """Names what the results cover, which is all where the other stage was done before."""
    keys = {*_makers(config), *(phases.encoder_key(config, v) for v in config.encoder.variants)}
    return "all" if keys == {model["key"] for model in models} else config.stage


def _makers(config: ConfigDict) -> dict[str, Callable[..., Outcome]]:
    """The phases of the models that are no variant of the encoder; the first fills preferences."""
    makers: dict[str, Callable[..., Outcome]] = {}
    if config.preferences_by == "sasrec":
        makers["sasrec"] = phases.sasrec_phase
    else:
        makers["diffusion"] = phases.diffusion_phase
        if config.diffusion.both:
            other = f"diffusion-{other_runs.other_weighting(config)}"
            makers[other] = phases.other_diffusion_phase
    return makers


def _run_phases(
    given: Given,
    preferences: Preferences | None,
    place: Workdir,
    log: MetricLog,
    times: dict[str, float],
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Runs the phases that are not done; fills ``times``, returns models and per-user arrays."""
    config, path = given.config, place.path
    arrays: dict[str, np.ndarray] = {}

    def asked(stage: str) -> bool:
        return config.stage in (stage, "all")

    def once(name: str, work: Callable[..., Outcome], *arguments: Any) -> dict[str, Any]:
        record = place.phases.find(name)
        if not processes.found_by_first(record is not None, f"{path}: phase {name}"):
            begun, before = time.monotonic(), log.read(name)
            outcome = work(given, *arguments, path, log)
            # A resumed phase counts the epochs of its first part as well.
            earlier = sum(line.get("seconds") or 0.0 for line in before)
            record = {
                **outcome.record,
                "seconds": time.monotonic() - begun + earlier,
                "peak_memory_bytes": _peak_memory(),
            }
            place.phases.finish(name, record, outcome.arrays)
            memory.release()
            compilation.drop_if_many()
        assert record is not None
        times[name] = record.get("seconds", 0.0)
        found = place.phases.arrays(name)
        arrays.update({f"{name}/{kind}": array for kind, array in found.items()})
        return record

    models, makers = [], _makers(config)
    for name, phase in makers.items():
        if asked("diffusion") or place.phases.find(name) is not None:
            models.append(once(name, phase)["model"])
        # Before the models that nothing else reads, so that runs which borrow them need not wait.
        if asked("diffusion"):
            once("preferences", phases.preferences_phase)
    if preferences is not None:
        once("preferences", phases.borrowed_phase, preferences)
    elif asked("encoder") and phases.needs_preferences(config):
        # Of the encoder's stage alone: they are there, or were damaged since.
        once("preferences", phases.preferences_phase)
        preferences = phases.own_preferences(given, path, log)
    for variant in config.encoder.variants:
        key = phases.encoder_key(config, variant)
        if key in {model["key"] for model in models}:  # it has filled the preferences
            continue
        if asked("encoder") or place.phases.find(key) is not None:
            models.append(once(key, phases.encoder_phase, variant, preferences)["model"])
    return models, arrays


def _peak_memory(place: Workdir | None = None) -> int:
    """The largest resident set of this run's process and of the phases before it, in bytes."""
    earlier = [] if place is None else place.phases.all().values()
    return max([memory.peak(), *(record.get("peak_memory_bytes", 0) for record in earlier)])


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return found
