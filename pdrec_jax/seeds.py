"""Several seeds of one experiment: a whole run each, and what they come to together.

Each seed has a folder ``seed-N`` of its own, which is what a run of that seed alone leaves: its own
diffusion model, preferences, candidates and encoders. So every phase of every seed is kept by
itself, a run of more seeds goes on where one of fewer ended, and what is trained side by side is a
matter of speed alone.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from pdrec_jax import compilation, memory, other_runs, phases, processes, run_models
from pdrec_jax.checkpoints import Store
from pdrec_jax.data import sources
from pdrec_jax.diffusion.preferences import Preferences
from pdrec_jax.encoders import together
from pdrec_jax.errors import UserError
from pdrec_jax.evaluation.groups import by_group
from pdrec_jax.evaluation.over_seeds import comparisons, over_seeds, variants_and_base
from pdrec_jax.given import Given, Prepared, prepare, with_seed
from pdrec_jax.metric_log import MetricLog
from pdrec_jax.report.report import is_written, write_report
from pdrec_jax.report.seeds import seeds_table, write_seeds_report
from pdrec_jax.report.tables import title
from pdrec_jax.training import Diverged, Run
from pdrec_jax.training_together import fit_together
from pdrec_jax.workdir import PER_USER, RESULTS, Workdir, seed_configs, seed_folder

RunOne = Callable[[ConfigDict, list[Path] | None, Path, Prepared | None], dict[str, Any]]


def run_head(config: ConfigDict, files: list[Path] | None) -> dict[str, Any]:
    """Returns what names a run in its results and titles."""
    return {
        "name": config.name,
        "protocol": config.protocol,
        "seed": config.seed,
        "negatives": config.evaluation.negatives,
        "data": {"source": "simulated" if files is None else "real"},
    }


def open_log(config: ConfigDict, place: Workdir) -> MetricLog:
    """Opens the log of a run; that of any process but the first is not kept."""
    if not processes.is_first():
        return MetricLog(None, stream=io.StringIO(), progress=False)
    progress = None if config.progress else False
    return MetricLog(place.path, progress=progress, tensorboard=config.tensorboard)


def complete_report(config: ConfigDict, place: Workdir) -> None:
    """Writes the report of a finished run that lacks it, or that can have its plots by now.

    Args:
      config: of the run.
      place: its directory.

    Raises:
      UserError: its results or ranks are damaged, or it cannot be written.
    """
    with place.reading_results():
        done = place.results()
        if done is not None and processes.is_first() and not is_written(place.path):
            with open_log(config, place) as log:
                write_report(place.path, done, log.read(), place.per_user())


def preferences_at_hand(given: Given, place: Workdir) -> Preferences | None:
    """Reads another run's preferences, or makes sure that those of this run are there or will be.

    Raises:
      UserError: the encoder stage is to run alone, with plugins, and there are none, nor a model
        that fills them; or the diffusion model of another run does not serve.
    """
    config = given.config
    phases.require_model(given, place.path)
    if config.stage != "encoder" or not phases.needs_preferences(config):
        return None
    if config.preferences_from:
        return other_runs.read_borrowed(given, place)
    done = place.phases.find("preferences") is not None
    if not done and not phases.can_compute_preferences(config, place):
        raise UserError(
            "config.stage: the encoder stage alone needs preferences: name the workdir of a run "
            "that has them with --config.preferences_from=DIR"
        )
    return None


def run(
    config: ConfigDict, files: list[Path] | None, path: Path, run_one: RunOne
) -> dict[str, Any]:
    """Runs or resumes several seeds, and prints the table of all.

    The diffusion stage of each seed runs in turn, then each variant of the encoder trains for all
    seeds side by side (``seeds_at_once``), then each seed's run is finished.

    Args:
      config: resolved and checked.
      files: the logs, None where one is simulated.
      path: directory of the run.
      run_one: runs one seed in its folder.

    Returns:
      means, deviations and comparisons, see ``evaluation.over_seeds``.

    Raises:
      UserError: anything the user can mend.
    """
    configs = seed_configs(config)
    numbers = [own.seed for own in configs]
    head = {**run_head(config, files), "seeds": numbers}
    place = Workdir(path, config, head["data"]["source"])
    print(title(head), flush=True)
    done = place.results_of(config.stage)
    seeds = [Workdir(path / seed_folder(own.seed), own, head["data"]["source"]) for own in configs]
    damaged = [run_models.damaged(own, one) for own, one in zip(configs, seeds, strict=True)]
    whole = done is not None and not any(damaged) and done.get("seeds") == numbers
    if _found(whole, place):
        assert done is not None
        place.require_log(sources.listed(files))
        with place.reading_results():
            text = seeds_table(done)
            if processes.is_first() and not is_written(place.path):
                write_seeds_report(path, done)
        for own, one in zip(configs, seeds, strict=True):
            complete_report(own, one)
        print(f"{place.path}: finished, these are its results", flush=True)
        print(text, flush=True)
        return done

    finished = []
    for own, one, broken in zip(configs, seeds, damaged, strict=True):
        results = one.results_of(config.stage)
        finished.append(_found(results is not None and not broken, one))
        if finished[-1]:
            assert results is not None
            _require_ranks(own.seed, one, results)
    place.require_unlocked()
    # The first seed's preparation finds what is wrong before a file is written.
    given, data = prepare(configs[0], files)
    prepared = [(given, data), *((with_seed(given, own), data) for own in configs[1:])]
    paths = [one.path for one in seeds]
    for (each, _), one, done_already in zip(prepared, seeds, finished, strict=True):
        if not done_already:  # a finished seed asks for nothing
            preferences_at_hand(each, one)
    with place.held(data):
        if any(damaged) and processes.is_first():
            place.reopen()  # a seed that is killed while it is mended has no damage to be seen
        summary = _run_all(config, files, head, prepared, paths, run_one)
        if processes.is_first():
            write_seeds_report(path, summary)
        place.finish(summary)
    print(seeds_table(summary), flush=True)
    return summary


def _found(here: bool, place: Workdir) -> bool:
    """Whether the first process finds a run finished; each must ask, see ``found_by_first``."""
    return processes.found_by_first(here, str(place.path / RESULTS))


def _require_ranks(seed: int, place: Workdir, done: dict[str, Any]) -> None:
    """Checks that a finished seed has its ranks, without which the seeds cannot be compared.

    Raises:
      UserError: they are damaged, or missing and in no phase from which they can be taken.
    """
    # Of several processes none puts them together: each would have to see what the first wrote.
    if place.per_user() or (jax.process_count() == 1 and place.ranks_of(done) is not None):
        return
    raise UserError(
        f"{place.path / PER_USER}: missing, so that seed {seed} cannot be compared with the "
        "others; put the file back, or remove the folder of the seed, which is then run anew"
    )


def _run_all(
    config: ConfigDict,
    files: list[Path] | None,
    head: dict[str, Any],
    prepared: Sequence[Prepared],
    paths: Sequence[Path],
    run_one: RunOne,
) -> dict[str, Any]:
    """Runs what is left of all seeds, see ``run``; returns the results of all.

    Raises:
      Diverged: the first encoder that did; all other seeds are finished.
    """
    configs, data = [given.config for given, _ in prepared], prepared[0][1]
    if config.stage != "encoder":
        for own, one, where in zip(configs, prepared, paths, strict=True):
            first = own.copy_and_resolve_references()
            first.stage = "diffusion"
            run_one(first, files, where, one)
    # On a mesh all devices work for one seed, and the data of a mapped log is for one at a time.
    alone = prepared[0][0].mesh is not None or prepared[0][0].split.train.mapped
    at_once = 1 if alone else config.seeds_at_once
    diverged: dict[int, Diverged] = {}  # by seed
    if config.stage != "diffusion" and at_once != 1:
        for variant in config.encoder.variants:
            diverged = {**_train_together(config, variant, prepared, paths), **diverged}
    results = []
    for own, one, where in zip(configs, prepared, paths, strict=True):
        if own.seed not in diverged:
            try:
                results.append(run_one(own, files, where, one))
            except Diverged as error:
                diverged[own.seed] = error.with_traceback(None)
    if diverged:
        first, how = next(iter(diverged.items()))
        raise Diverged(f"seed {first}: {how}") from how
    places = [
        Workdir(where, own, data["source"]) for where, own in zip(paths, configs, strict=True)
    ]
    per_user = [each.per_user() for each in places]
    ranks = _stacked(per_user)
    models = _common([result["models"] for result in results])
    times = [result["times"] for result in results]
    stages = {result["stage"] for result in results}
    return {
        **head,
        "stage": stages.pop() if len(stages) == 1 else config.stage,
        "data": data,
        "models": over_seeds(models),
        "comparisons": comparisons(
            variants_and_base(models[0]),
            ranks,
            config.evaluation.negatives,
            seed=config.seed,
        ),
        "groups": by_group(models[0], ranks, per_user[0]),
        "times": {key: round(sum(t.get(key, 0.0) for t in times), 2) for key in times[0]},
        "peak_memory_bytes": max(result["peak_memory_bytes"] for result in results),
        "versions": results[0]["versions"],
        "device": results[0]["device"],
    }


def _train_together(
    config: ConfigDict, variant: str, prepared: Sequence[Prepared], paths: Sequence[Path]
) -> dict[int, Diverged]:
    """Trains a variant of the encoder for all seeds that lack it, up to its best parameters.

    Each is left as ``phases.encoder_phase`` leaves it. Seeds go in groups of ``seeds_at_once``, and
    a group's data, states and best parameters are gone before the next one's are made. Where that
    is left open, a processor has all of them in one group: a core whose seed has ended takes the
    next one.

    Returns:
      what has ended the training of those that diverged, by seed.
    """
    key, left = phases.encoder_key(config, variant), []
    for (given, data), path in zip(prepared, paths, strict=True):
        place = Workdir(path, given.config, data["source"])
        # Of a run that was kept there are results, and no phases.
        done = place.results_of("encoder") is not None or place.phases.find(key) is not None
        if not done and Store(path / "encoders" / key).step("best") is None:
            left.append((given, data, place))
    if len(left) < 2:
        return {}
    at_once, workers = config.seeds_at_once, config.seeds_at_once or _cores()
    if not at_once and not _share_a_program():
        at_once = len(left)
    diverged: dict[int, Diverged] = {}
    while left:
        with contextlib.ExitStack() as stack:
            group: list[tuple[phases.EncoderTraining, MetricLog]] = []
            numbers = []
            while left and len(group) < (at_once or 1):
                given, data, place = left.pop(0)
                stack.enter_context(place.held(data))
                log = stack.enter_context(open_log(given.config, place))
                group.append((_training(given, variant, place, log), log))
                numbers.append(given.config.seed)
                if not at_once:  # the first one tells
                    task = group[0][0].task
                    at_once = together.seeds_that_fit(task.abstract(), task.data)
                    del task
            ended = train_together(group, key, workers)
            del group
        diverged |= {seed: error for seed, error in zip(numbers, ended, strict=True) if error}
        memory.release()
        compilation.drop_if_many()
    return diverged


def _training(given: Given, variant: str, place: Workdir, log: MetricLog) -> phases.EncoderTraining:
    """Builds what trains a variant of a seed; of its preferences it keeps what the steps read."""
    preferences = None
    if variant != "base" and given.config.preferences_from:
        preferences = other_runs.read_borrowed(given, place)
        if place.phases.find("preferences") is None:
            # Before a step is made with them, so that the run cannot go on with others.
            begun = time.monotonic()
            outcome = phases.borrowed_phase(given, preferences, place.path, log)
            spent = time.monotonic() - begun
            place.phases.finish("preferences", {**outcome.record, "seconds": spent})
    elif variant != "base":
        preferences = phases.own_preferences(given, place.path, log)
    return phases.encoder_training(given, variant, preferences, place.path)


def train_together(
    group: Sequence[tuple[phases.EncoderTraining, MetricLog]], label: str, workers: int
) -> list[Diverged | None]:
    """Trains one variant of several seeds side by side.

    On an accelerator they share one program; on a processor, which such a program keeps no busier,
    threads take one after the other.

    Args:
      group: of each seed its training and the log of its run.
      label: for the progress bar.
      workers: how many threads, on a processor.

    Returns:
      of each seed what has ended its training, None where it came to its end.
    """
    began = time.monotonic()
    runs = [Run(made.task, made.settings, made.store, log) for made, log in group]
    with contextlib.suppress(Diverged):  # the run has it
        if _share_a_program():
            fit_together(runs, label, together.run_epochs)
        else:
            fit_together(runs, label, workers=min(workers, len(runs)))
    if len(runs) > 1:
        spent = time.monotonic() - began
        runs[0].log.phase(f"{label}: {len(runs)} seeds side by side in {spent:.0f} s")
    # A traceback would hold on to all that the group has.
    return [error and error.with_traceback(None) for error in (run.diverged for run in runs)]


def _share_a_program() -> bool:
    """Whether seeds train side by side in one program, see ``encoders.together``."""
    return jax.default_backend() != "cpu"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _stacked(arrays: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Puts the ranks that all seeds have together, [S, U] by ``KEY/KIND_rank``."""
    everywhere = set.intersection(*(set(found) for found in arrays))
    names = [name for name in arrays[0] if name.endswith("_rank") and name in everywhere]
    return {name: np.stack([found[name] for found in arrays]) for name in names}


def _common(models: Sequence[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """The models that all seeds have: a run of one stage may have found some with both done."""
    everywhere = set.intersection(*({model["key"] for model in found} for found in models))
    return [[model for model in found if model["key"] in everywhere] for found in models]
