"""What can be reproduced: its runs, and its table from what was run so far."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from pdrec_jax.data import sources
from pdrec_jax.encoders import registry
from pdrec_jax.evaluation.paper import TOLERANCE, published
from pdrec_jax.evaluation.significance import holm
from pdrec_jax.phases import encoder_key
from pdrec_jax.prepare.origins import PAIRS
from pdrec_jax.report.tables import duration
from pdrec_jax.reproduce.cells import FLAG, Cell, Gain, Point, Row, Table
from pdrec_jax.reproduce.plan import (
    SWEEPS,
    Job,
    Setting,
    ablation_job,
    diffusion_job,
    encoder_job,
    sweep_jobs,
)
from pdrec_jax.settings import FREE_FIELDS, get

# Heading and metric, as in the paper's Table 1.
METRICS = {
    "N@1": "NDCG@1", "N@5": "NDCG@5", "N@10": "NDCG@10",
    "HR@5": "HR@5", "HR@10": "HR@10", "AUC": "AUC",
}  # fmt: skip
_DIFFUSION = {"position": "T-DiffRec", "time": "TI-DiffRec"}  # by weighting
_NOTES = (
    "A cell: the paper's figure, ours (mean and standard deviation over seeds), the difference; "
    f"{FLAG} where it exceeds the paper's own {TOLERANCE:g}. No figure of the paper stands where "
    "none was verified, none of ours where nothing was run.",
)
_SHARED = (
    "All seeds share the diffusion models of the first: what is trained on them varies by its own "
    "chance and by the candidates, and figures of theirs are of one seed."
)
_GAINS = (
    "A gain: over the same encoder without plugins; p of paired t-tests over users, then over "
    "seeds, each corrected (Holm) over the {count} gains of this table."
)
_SIMULATED = "SIMULATED DATA: not comparable with figures of any real log."


@dataclasses.dataclass(frozen=True)
class Target:
    """A table or figure.

    Attributes:
      name: of its files.
      jobs: its runs, in order, for the datasets in order; made once for a setting, for each of them
        takes a while to find its log and to check its config.
      table: its table from what was run so far.
      drawn: whether it is a figure.
    """

    name: str
    jobs: Callable[[Setting], list[Job]]
    table: Callable[[Sequence[Setting]], Table]
    drawn: bool = False


def main_table(number: int, encoders: Sequence[str]) -> Target:
    """Table 1, or 3 for the configs of the cross-domain pairs: all models, all metrics."""

    @functools.cache
    def jobs(setting: Setting) -> list[Job]:
        return [diffusion_job(setting), *(encoder_job(setting, name) for name in encoders)]

    def table(settings: Sequence[Setting]) -> Table:
        rows = []
        for setting in settings:
            made = jobs(setting)
            rows += _diffusion_rows(made[0])
            rows += [row for job in made[1:] for row in _variants(job)]
        return _table(f"Table {number}", settings, rows, jobs)

    return Target(f"table{number}", jobs, table)


def statistics() -> Target:
    """Table 2: users, items and events of each log, as it is read; nothing is trained."""

    def table(settings: Sequence[Setting]) -> Table:
        rows = []
        for setting in settings:
            files = sources.find_files(setting.config)
            log, _ = sources.load(setting.config, files)
            lengths = log.target_lengths
            users, items = int((lengths > 0).sum()), log.num_target_items
            events = int(lengths.sum())
            known = (None, None, None) if files is None else _of_log(setting.config)
            cells = [
                Cell(paper, float(count), decimals=0)
                for paper, count in zip(known, (users, items, events), strict=True)
            ]
            cells += [
                Cell(ours=events / users, decimals=2),
                Cell(ours=100 * (1 - events / users / items), decimals=3),
            ]
            rows.append(Row(setting.dataset, "target domain", cells))
        columns = ("users", "items", "events", "events a user", "sparsity (%)")
        return dataclasses.replace(
            _table("Table 2", settings, rows, jobs), columns=columns, notes=_simulated(settings)
        )

    def jobs(_: Setting) -> list[Job]:
        return []

    return Target("table2", jobs, table)


def _of_log(config: ConfigDict) -> tuple[float | None, float | None, float | None]:
    """The paper's users, items and events of a real log, by its name; None of one's own."""
    name = "" if config.data.path else Path(config.data.target).name.partition(".")[0]
    for pair in PAIRS.values():
        for domain in (pair.first, pair.second):
            if domain.name == name:
                return float(domain.users), float(domain.items), float(domain.records)
    return None, None, None


def ablation(encoders: Sequence[str]) -> Target:
    """Figure 4: what each plugin adds, and what is lost without TI-DiffRec."""

    @functools.cache
    def jobs(setting: Setting) -> list[Job]:
        made = [encoder_job(setting, name) for name in encoders]
        # Of SASRec alone, beside which it stands.
        without = [ablation_job(setting)] if "sasrec" in encoders else []
        return [diffusion_job(setting), *made, *without]

    def table(settings: Sequence[Setting]) -> Table:
        rows = []
        for setting in settings:
            made = jobs(setting)[1:]
            rows += [row for job in made[: len(encoders)] for row in _variants(job)]
            key = "sasrec+hbr+nns+dpa"
            for job in made[len(encoders) :]:
                rows += _rows(job, {key: "SASRec w/o TI-DiffRec"}, paper=False)
        return _table("Figure 4", settings, rows, jobs)

    return Target("figure4", jobs, table, drawn=True)


def sweep(
    name: str,
    title: str,
    fields: Mapping[str, tuple[Any, ...]] = SWEEPS,
    encoders: Sequence[str] = (),
) -> Target:
    """Figure 5, or a sweep over any fields: all plugins, a run a value.

    Args:
      name: of the files.
      title: of the table.
      fields: the values of each.
      encoders: a run a value for each of them; the config's where there is none.
    """

    @functools.cache
    def jobs(setting: Setting) -> list[Job]:
        found: dict[Path, Job] = {}
        for field, values in fields.items():
            for encoder in encoders or (None,):
                made = sweep_jobs(setting, field, values, encoder)
                found |= {job.workdir: job for job in made}
        return list(found.values())

    def table(settings: Sequence[Setting]) -> Table:
        rows = []
        for setting in settings:
            for job in jobs(setting):
                field, value = next(iter(job.changed.items()))
                if field in fields:
                    rows += _swept(job, field, value, len(encoders) > 1)
        return _table(title, settings, rows, jobs)

    return Target(name, jobs, table, drawn=True)


def _swept(job: Job, field: str, value: Any, several: bool) -> list[Row]:
    """A row for each variant of a value, named by what there is more than one of."""
    encoder, variants = job.config.encoder.name, job.config.encoder.variants
    rows = []
    for variant in variants:
        curve = ", ".join([encoder] * several + [variant] * (len(variants) > 1))
        name = f"{field} = {value}" + f" ({curve})" * bool(curve)
        point = Point(field, str(value), curve)
        rows += [
            dataclasses.replace(row, point=point)
            for row in _rows(job, {encoder_key(job.config, variant): name}, paper=False)
        ]
    return rows


def _diffusion_rows(job: Job) -> list[Row]:
    """T- and TI-DiffRec, of which the run's own weighting is the one without a suffix."""
    own = job.config.diffusion.weighting if job.config.data.time else "position"
    return _rows(
        job,
        {
            "diffusion" if weighting == own else f"diffusion-{weighting}": name
            for weighting, name in _DIFFUSION.items()
        },
    )


def _variants(job: Job) -> list[Row]:
    encoder = job.config.encoder
    title, _ = registry.find(encoder.name)
    keys = [encoder_key(job.config, variant) for variant in encoder.variants]
    return _rows(job, {key: title + key.removeprefix(encoder.name).upper() for key in keys})


def _rows(job: Job, names: Mapping[str, str], *, paper: bool = True) -> list[Row]:
    """The rows of some models of a job, without figures where it is not finished.

    Args:
      job: whose results are read.
      names: of the rows, by the models' keys.
      paper: whether the rows are models of the paper, whose figures stand beside ours.

    Raises:
      UserError: the results are another run's or damaged.
    """
    results = job.results or {}
    rows = []
    with job.place.reading_results():
        models = {model["key"]: model for model in results.get("models", [])}
        simulated = job.resolved[1] == "simulated"
        for key, name in names.items():
            model = models.get(key, {})
            if paper:  # the run knows better: on a log without times all is T-DiffRec
                name = model.get("name", name)
            known = published(job.config, name) if paper and not simulated else {}
            ours = model.get("sampled", {})
            deviations = model.get("deviation", {}).get("sampled", {})
            gains = _gains(results, key)
            cells = [
                Cell(
                    known.get(metric),
                    _number(ours, metric),
                    _number(deviations, metric),
                    gain=gains.get(metric),
                )
                for metric in METRICS.values()
            ]
            rows.append(Row(job.dataset, name, cells))
    return rows


def _gains(results: Mapping[str, Any], key: str) -> dict[str, Gain]:
    """What a model of several seeds gains over its base by metric, p-values not corrected."""
    found = {}
    for each in results.get("comparisons", []):
        if (each["key"], each["block"]) == (key, "sampled"):
            p_values = (each[name] for name in ("p_users", "p_seeds"))
            users, seeds = (math.nan if p is None else float(p) for p in p_values)
            found[str(each["metric"])] = Gain(float(each["difference"]), users, seeds)
    return found


def _corrected(rows: Sequence[Row]) -> list[Row]:
    """The rows with their gains' p-values corrected over all of them, users and seeds apart."""
    gains = [cell.gain for row in rows for cell in row.cells if cell.gain]
    users, seeds = (
        iter(holm(np.array([getattr(gain, name) for gain in gains])).tolist())
        for name in ("p_users", "p_seeds")
    )

    def corrected(cell: Cell) -> Cell:
        if cell.gain is None:
            return cell
        gain = Gain(cell.gain.difference, next(users), next(seeds))
        return dataclasses.replace(cell, gain=gain)

    return [dataclasses.replace(row, cells=[corrected(cell) for cell in row.cells]) for row in rows]


def _number(figures: Mapping[str, Any], metric: str) -> float | None:
    return float(figures[metric]) if metric in figures else None


def _table(
    title: str,
    settings: Sequence[Setting],
    rows: Sequence[Row],
    jobs: Callable[[Setting], list[Job]],
) -> Table:
    config = settings[0].config
    seeds = f"seed {config.seed}"
    if config.seeds > 1:
        seeds = f"seeds {config.seed} to {config.seed + config.seeds - 1}"
    shared = config.seeds > 1 and any(setting.shared for setting in settings)
    simulated = _simulated(settings)
    notes = [*_NOTES, *([_SHARED] if shared else []), *_by_hand(settings), *simulated]
    notes += _time_taken([job for setting in settings for job in jobs(setting)])
    count = sum(cell.gain is not None for row in rows for cell in row.cells)
    notes += [_GAINS.format(count=count)] * (count > 0)
    rows = _corrected(rows)
    source = "simulated" if simulated else "real"
    return Table(title, config.protocol, seeds, source, tuple(METRICS), rows, notes)


def _simulated(settings: Sequence[Setting]) -> list[str]:
    found = any(sources.find_files(setting.config) is None for setting in settings)
    return [_SIMULATED] if found else []


def _by_hand(settings: Sequence[Setting]) -> list[str]:
    """Which fields the command line sets, in a note: two tables may differ in nothing else."""
    told = {
        f"{field}={get(setting.config, field)}"
        for setting in settings
        for field in setting.by_hand
        if field not in ("seed", "seeds", "protocol", "data.target")
        and (field not in FREE_FIELDS or field.endswith("_overrides"))
    }
    return [f"Set by hand: {', '.join(sorted(told))}."] if told else []


def _time_taken(jobs: Sequence[Job]) -> list[str]:
    """How long the finished runs of a table took, in a note; none where one does not say so.

    Raises:
      UserError: see ``_rows``.
    """
    seconds, devices, finished = 0.0, dict[str, None](), 0
    for job in jobs:
        results = job.results
        if results is None:
            continue
        finished += 1
        with job.place.reading_results():
            if "times" not in results:
                return []
            seconds += float(results["times"]["total"])
            devices[str(results.get("device", "an unnamed device"))] = None
    if not finished:
        return []
    took = f"{duration(seconds)} in all on {', '.join(devices)}"
    return [f"Finished runs: {finished} of {len(jobs)}, {took}."]
