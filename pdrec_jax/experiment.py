"""The stages of a run in order: data, diffusion, preferences, encoders, report."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from pdrec_jax.checkpoints import Store
from pdrec_jax.data import sources
from pdrec_jax.data.splits import Split, leave_one_out
from pdrec_jax.diffusion import stage as diffusion_stage
from pdrec_jax.diffusion.preferences import (
    PoolRules,
    Preferences,
    load_preferences,
    save_preferences,
)
from pdrec_jax.encoders import stage as encoder_stage
from pdrec_jax.errors import UserError
from pdrec_jax.evaluation.protocol import (
    Protocol,
    UserSets,
    draw_candidates,
    get_protocol,
    user_sets,
)
from pdrec_jax.evaluation.ranking import Ranks
from pdrec_jax.metric_log import MetricLog
from pdrec_jax.report.report import write_report
from pdrec_jax.report.tables import results_table, title
from pdrec_jax.settings import apply_overrides, seeded, validate
from pdrec_jax.training import Fitted, fit
from pdrec_jax.workdir import Workdir

# Test NDCG@10 on sampled candidates in the paper's Table 1, for the column beside ours.
_PAPER = {
    ("toy", "diffusion"): 0.1823,
    ("toy", "sasrec"): 0.2020,
    ("toy", "sasrec+hbr+nns+dpa"): 0.2286,
}
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What every phase reads.

    Attributes:
      config: resolved.
      protocol: named in the config.
      split: the data.
      users: who takes part where.
      candidates: of the test item, [U, 1 + N].
      validation: of the validation item, [U, 1 + N]; the test's under ``reference``.
      workdir: of the run.
      log: progress and metrics.
    """

    config: ConfigDict
    protocol: Protocol
    split: Split
    users: UserSets
    candidates: np.ndarray
    validation: np.ndarray
    workdir: Workdir
    log: MetricLog


def run(config: ConfigDict, pristine: ConfigDict, workdir: str | None) -> dict[str, Any]:
    """Runs or resumes an experiment, and prints its table.

    Args:
      config: as resolved from file and command line.
      pristine: as the file gave it.
      workdir: directory of the run; None for one named after the experiment.

    Returns:
      the results, see docs/results.md.

    Raises:
      UserError: anything the user can mend.
    """
    validate(config)
    files = sources.find_files(config)
    simulated = files is None
    if simulated:
        config = apply_overrides(config, pristine)
        validate(config)
    get_protocol(config.protocol)
    for variant in config.encoder.variants:
        encoder_stage.title_of(config.encoder, variant)
    head = {
        "name": config.name,
        "protocol": config.protocol,
        "seed": config.seed,
        "data": {"source": "simulated" if simulated else "real"},
    }
    print(title(head), flush=True)
    place = Workdir(workdir or default_workdir(config, simulated), config)
    done = place.results()
    if done is not None and done.get("stage") in (config.stage, "all"):
        print(f"{place.path}: finished, these are its results", flush=True)
        print(results_table(done), flush=True)
        return done
    with MetricLog(
        place.path, progress=None if config.progress else False, tensorboard=config.tensorboard
    ) as log:
        results = _run_phases(config, files, head, place, log)
    print(results_table(results), flush=True)
    return results


def default_workdir(config: ConfigDict, simulated: bool) -> Path:
    """Returns ``runs/NAME-PROTOCOL-SEED``, marked where the log is simulated."""
    mark = "-simulated" if simulated else ""
    return Path("runs") / f"{config.name}-{config.protocol}-{config.seed}{mark}"


def _run_phases(config, files, head, place: Workdir, log: MetricLog) -> dict[str, Any]:
    begun = time.monotonic()
    loaded, source = sources.load(config, files)
    split = leave_one_out(loaded)
    protocol = get_protocol(config.protocol)
    test = _candidates(config, protocol, split, "test")
    same = protocol.select_on_test
    this = Run(
        config,
        protocol,
        split,
        user_sets(protocol, split),
        test,
        test if same else _candidates(config, protocol, split, "valid"),
        place,
        log,
    )
    data = {
        **source,
        "users": split.train.num_users,
        "items": split.train.num_items,
        "events": split.train.num_events + 2 * split.train.num_users,
        "dropped_users": split.dropped_users,
    }
    log.phase(
        f"data: {data['users']:,} users, {data['items']:,} items, {data['events']:,} events"
        + (f", {split.dropped_users:,} users with fewer than 3 dropped" * (split.dropped_users > 0))
    )
    _require_users(this)
    times = {"data": time.monotonic() - begun}
    models, arrays = _run_models(this, times)
    times["total"] = sum(times.values())
    results = {
        **head,
        "stage": config.stage,
        "data": data,
        "models": models,
        "plugins": (place.phase("preferences") or {}).get("effects", {}),
        "times": {name: round(seconds, 2) for name, seconds in times.items()},
        "peak_memory_bytes": _peak_memory(place),
        "versions": _versions(),
        "device": f"{jax.devices()[0].device_kind} x{jax.device_count()}",
    }
    per_user = {
        "users": split.train.user_ids,
        "history_length": split.train.lengths,
        **arrays,
    }
    place.finish(results, per_user)
    write_report(place.path, results, log.read(), per_user)
    log.phase(f"report: {place.path / 'report.md'}")
    return results


def _candidates(config, protocol, split, heldout):
    negatives = config.evaluation.negatives
    return draw_candidates(protocol, split, config.seed, heldout=heldout, negatives=negatives)


def _require_users(run: Run) -> None:
    for name in ("diffusion", "preferences", "encoder"):
        if not getattr(run.users, name).any():
            raise UserError(
                f"data: no user passes the {run.protocol.name} protocol's filter of the {name} "
                "stage, at least one is expected"
            )


def _run_models(run: Run, times: dict[str, float]) -> tuple[list, dict[str, np.ndarray]]:
    config, models, arrays = run.config, [], {}

    def phase(name: str, work: Callable[[], tuple[dict, dict]]) -> dict[str, Any]:
        record = run.workdir.phase(name)
        if record is None:
            begun = time.monotonic()
            before = run.log.read(name)
            record, found = work()
            # A resumed phase counts the epochs of its first part as well.
            resumed = sum(line.get("seconds") or 0 for line in before)
            record |= {
                "seconds": time.monotonic() - begun + resumed,
                "peak_memory_bytes": _peak_memory(),
            }
            run.workdir.finish_phase(name, record, found)
        times[name] = record["seconds"]
        arrays.update({f"{name}/{k}": v for k, v in run.workdir.phase_arrays(name).items()})
        return record

    needs = any(encoder_stage.parse_variant(v) for v in config.encoder.variants)
    own_preferences = not config.preferences_from
    if config.stage != "encoder" or (needs and own_preferences):
        if config.stage == "encoder" and run.workdir.phase("preferences") is None:
            raise UserError(
                "config.stage: the encoder stage alone needs preferences: name the workdir of a "
                "run that has them with --config.preferences_from=DIR"
            )
        if config.stage != "encoder":
            models.append(phase("diffusion", lambda: diffusion_phase(run))["model"])
            phase("preferences", lambda: preferences_phase(run))
    if config.stage == "diffusion":
        return models, arrays
    preferences = _read_preferences(run) if needs else None
    if preferences is not None and not own_preferences and run.workdir.phase("preferences") is None:
        run.workdir.finish_phase(
            "preferences", {"effects": encoder_stage.effects(config, run.split, preferences, run.protocol.hbr_floor)}
        )
    for variant in config.encoder.variants:
        key = encoder_key(config, variant)
        record = phase(key, lambda v=variant: encoder_phase(run, v, preferences))
        models.append(record["model"])
    return models, arrays


def pool_rules(config: ConfigDict, protocol: Protocol) -> PoolRules:
    """The pools that a config and a protocol ask for."""
    return PoolRules(
        candidates=config.dpa.coarse,
        candidates_unobserved=protocol.dpa_unobserved,
        negatives=config.nns.kept,
        first_fraction=config.nns.first_fraction,
        last_fraction=protocol.nns_last_fraction,
        ranks_among_all=protocol.nns_excludes_heldout,
    )


def diffusion_phase(run: Run) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Trains and evaluates the diffusion model."""
    task, scorers = diffusion_stage.build(
        seeded(run.config, "diffusion"),
        run.split,
        run.users.diffusion,
        protocol=run.protocol,
        candidates=run.candidates,
        validation=run.validation,
    )
    settings = diffusion_stage.loop_settings(run.config.diffusion, run.config.save_seconds)
    fitted = fit(task, settings, Store(run.workdir.path / "diffusion"), run.log)
    name = {"time": "TI-DiffRec", "position": "T-DiffRec"}[run.config.diffusion.weighting]
    return _evaluated(run, "diffusion", name, fitted, scorers, run.users.diffusion)


def preferences_phase(run: Run) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Computes and saves the preferences of all users."""
    config = run.config
    section = seeded(config, "diffusion")
    store = Store(run.workdir.path / "diffusion")
    preferences = diffusion_stage.infer_preferences(
        section,
        run.split,
        run.users.preferences,
        pool_rules(config, run.protocol),
        store,
        run.log,
        exclude_heldout=run.protocol.nns_excludes_heldout,
    )
    save_preferences(Store(run.workdir.path), preferences, {"protocol": run.protocol.name})
    count = int(preferences.users.sum())
    run.log.phase(f"preferences: {count:,} users")
    floor = run.protocol.hbr_floor
    return {"effects": encoder_stage.effects(config, run.split, preferences, floor)}, {}


def _read_preferences(run: Run) -> Preferences:
    place = Path(run.config.preferences_from or run.workdir.path)
    return load_preferences(Store(place), run.split, pool_rules(run.config, run.protocol))


def encoder_key(config: ConfigDict, variant: str) -> str:
    """Names an encoder's phase, log lines and arrays: ``sasrec+hbr+nns+dpa``."""
    return "+".join([config.encoder.name, *encoder_stage.parse_variant(variant)])


def encoder_phase(
    run: Run, variant: str, preferences: Preferences | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Trains and evaluates one variant of the encoder."""
    key = encoder_key(run.config, variant)
    task, scorers = encoder_stage.build(
        run.config,
        variant,
        run.split,
        preferences,
        drawn=run.users.preferences,
        ranked=run.users.encoder,
        protocol=run.protocol,
        candidates=run.candidates,
        validation=run.validation,
        name=key,
    )
    settings = encoder_stage.loop_settings(run.config.encoder, run.config.save_seconds)
    fitted = fit(task, settings, Store(run.workdir.path / "encoders" / key), run.log)
    name = encoder_stage.title_of(run.config.encoder, variant)
    return _evaluated(run, key, name, fitted, scorers, run.users.encoder)


def _evaluated(
    run: Run, key: str, name: str, fitted: Fitted, scorers: dict[str, Any], users: np.ndarray
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Ranks with the best parameters, and describes the model for the results."""
    sampled: Ranks = scorers["test"].sampled(fitted.params)
    full: Ranks = scorers["test"].full(fitted.params)
    validation = scorers["validation"].sampled(fitted.params) if scorers["validation"] else None
    model = {
        "name": name,
        "key": key,
        "stage": "diffusion" if key == "diffusion" else "encoder",
        "best_epoch": fitted.course.best_epoch,
        "epochs": fitted.course.epoch,
        "users": int(users.sum()),
        "sampled": sampled.metrics(),
        "full": full.metrics(),
        "validation": validation.metrics() if validation else None,
        "paper": {},
    }
    if (run.config.name, key) in _PAPER:
        model["paper"] = {"NDCG@10": _PAPER[run.config.name, key]}
    arrays = {}
    for kind, ranks in (("sampled_rank", sampled), ("full_rank", full)):
        arrays[kind] = np.full(len(users), np.nan, np.float32)
        arrays[kind][users] = ranks.ranks
    run.log.phase(
        f"{name}: best epoch {model['best_epoch']} of {model['epochs']}, "
        f"NDCG@10 {model['sampled']['NDCG@10']:.4f} sampled, {model['full']['NDCG@10']:.4f} full"
    )
    return {"model": model}, arrays


def _peak_memory(place: Workdir | None = None) -> int:
    """The largest resident set of this process and of the phases before it, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if place is None:
        return peak
    earlier = [
        (place.phase(path.stem) or {}).get("peak_memory_bytes", 0)
        for path in (place.path / "phases").glob("*.json")
    ]
    return max([peak, *earlier])


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return found

