"""The configuration: every field with its default, its range and what it means.

A file in ``configs/`` starts from ``default_config()`` and sets what its experiment changes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from pdrec_jax.consistency import MAX_SEED
from pdrec_jax.errors import UserError
from pdrec_jax.fields import INFINITY, Field
from pdrec_jax.fields import among as _among
from pdrec_jax.fields import count as _count
from pdrec_jax.fields import file_name as _file_name
from pdrec_jax.fields import flag as _flag
from pdrec_jax.fields import mesh as _mesh
from pdrec_jax.fields import names as _names
from pdrec_jax.fields import number as _number
from pdrec_jax.fields import overrides as _overrides
from pdrec_jax.fields import place as _place
from pdrec_jax.fields import text as _text
from pdrec_jax.fields import widths as _widths

# Far beyond sense, and short of where a compiler or a loop over them would give up.
_MOST_TURNS, _MOST_WIDTH, _MOST_DRAWN, _MOST_LAYERS = 1_000_000, 65_536, 1_000, 1_000

FIELDS: dict[str, Field] = {
    "name": _file_name("custom", "name of the experiment, in titles and the default workdir"),
    "seed": _count(0, "of initial values, draws and candidates", least=0, most=MAX_SEED),
    "seeds": _count(1, "how many runs, of seed, seed + 1 and so on, each in a folder of its own"),
    "seeds_at_once": _count(
        0, "seeds of an encoder that train side by side; 0 for as many as is sensible", least=0
    ),
    "protocol": _among(
        "strict", ("strict", "reference"), "free of leakage, or the public code's choices"
    ),
    "strict_overrides": _overrides("settings under protocol strict; a field set by hand wins"),
    "reference_overrides": _overrides("settings under protocol reference; likewise"),
    "gru4rec_overrides": _overrides(
        "settings of encoder gru4rec; likewise, and one of the protocol's wins"
    ),
    "stage": _among("all", ("all", "diffusion", "encoder"), "which stages to run"),
    "preferences_from": _text(
        "", "workdir whose preferences the encoder stage reads; empty for this run's own"
    ),
    "diffusion_from": _text(
        "", "workdir of a run whose diffusion model this run takes; empty to train one"
    ),
    "preferences_by": _among(
        "diffusion",
        ("diffusion", "sasrec"),
        "what fills the preferences; sasrec is the paper's ablation without TI-DiffRec",
    ),
    "mesh": _mesh(
        (-1, 1),
        "devices along the axes data and model; -1 for as many as there are, docs/scaling.md",
    ),
    "save_seconds": _number(300.0, 0, INFINITY, "wall time between saves of a stage's state"),
    "save_async": _among(
        "auto",
        ("auto", "on", "off"),
        "save a stage's state in the background; auto where devices have memory of their own",
    ),
    "progress": _flag(True, "show progress bars"),
    "tensorboard": _flag(False, "write TensorBoard files too (needs the extra)"),
    "compilation_cache": _place(
        "auto",
        ("auto", "off"),
        "where compiled programs are kept: auto (in the user's cache), off, or a directory",
    ),
    # Data.
    "data.source": _among(
        "auto", ("auto", "real", "simulated"), "auto simulates where there is no real log"
    ),
    "data.dir": _text("", "directory of the logs; then $PDREC_DATA, then data/"),
    "data.path": _text(
        "", "directory made by pdrec_jax.prepare: its log, and settings where none is set by hand"
    ),
    "data.target": _text("", "log of the domain to recommend, a name without its ending or a path"),
    "data.auxiliary": _text("", "log of the paper's source domain, or empty; decides on users"),
    "data.mixed": _flag(False, "train on both domains' events, the paper's cross-domain task"),
    "data.learns_source": _flag(
        True, "with data.mixed: source items are positives, negatives, candidates, not input alone"
    ),
    "data.user": _text("user_id", "column of the users"),
    "data.item": _text("item_id", "column of the items"),
    "data.time": _text("timestamp", "column of the times, or empty for log order"),
    "data.auxiliary_time": _text("", "the same of the auxiliary log, where it has another name"),
    "data.auxiliary_first": _flag(False, "the auxiliary's events come first where times tie"),
    "data.ids": _among("any", ("any", "integer"), "whether ids must be integers of at least 1"),
    "data.origin": _text("", "where the logs can be had, for the message that they are missing"),
    # Simulated log.
    "simulation.seed": _count(-1, "of the log; -1 for the run's own", least=-1, most=MAX_SEED),
    "simulation.num_users": _count(2000, "users", least=2),
    "simulation.num_items": _count(3000, "target items", least=200),
    "simulation.num_source_items": _count(0, "source items", least=0),
    "simulation.mean_length": _number(14.3, 4, 1000, "events a user, on average"),
    "simulation.overrides": _overrides(
        "settings of the shortened run on a simulated log; a field set by hand wins"
    ),
    # Diffusion.
    "diffusion.schedule": _among(
        "linear-var", ("linear", "linear-var", "cosine", "binomial"), "of the noise"
    ),
    "diffusion.steps": _count(10, "T", most=_MOST_TURNS),
    "diffusion.noise_scale": _number(
        0.01, 0, INFINITY, "factor of both ends of the two linear schedules; 0 for no noise"
    ),
    "diffusion.noise_min": _number(0.0005, 0, INFINITY, "lower end of these two"),
    "diffusion.noise_max": _number(0.005, 0, INFINITY, "upper end of these two"),
    "diffusion.hidden": _widths((1000,), "H, of each layer"),
    "diffusion.embedding_size": _count(10, "width of the timestep embedding", most=_MOST_WIDTH),
    "diffusion.normalise": _flag(False, "divide each input vector by its L2 norm"),
    "diffusion.target": _among("x0", ("x0", "epsilon"), "what the denoiser predicts"),
    "diffusion.reweight": _flag(True, "weight the loss of a timestep by its signal-to-noise ratio"),
    "diffusion.dropout": _number(0.5, 0, 0.99, "on the denoiser's input"),
    "diffusion.sampling_steps": _count(0, "forward steps before inference", least=0),
    "diffusion.sampling_noise": _flag(False, "add noise in the reverse steps"),
    "diffusion.noise_fraction": _number(
        1.0, 0, 1, "share of the slots that carry noise in a training step", open_low=True
    ),
    "diffusion.error_fraction": _number(
        1.0, 0, 1, "share of the slots whose error a training step looks at", open_low=True
    ),
    "diffusion.weighting": _among(
        "time", ("time", "position"), "TI-DiffRec weighs behaviours by time, T-DiffRec by position"
    ),
    "diffusion.both": _flag(False, "train and rank the other of T- and TI-DiffRec too"),
    "diffusion.w_min": _number(0.5, 0, INFINITY, "weight of the earliest behaviour"),
    "diffusion.w_max": _number(1.0, 0, INFINITY, "weight of the latest behaviour", open_low=True),
    "diffusion.ties": _among(
        "AllOne", ("AllOne", "AllLinear", "MinMax"), "weights where all times are equal"
    ),
    "diffusion.source_slots": _flag(False, "slots for the source items too, always empty"),
    "diffusion.learning_rate": _number(5e-5, 0, INFINITY, "of AdamW", open_low=True),
    "diffusion.learning_rate_decay": _number(0.99, 0, 1, "factor an epoch", open_low=True),
    "diffusion.weight_decay": _number(0.5, 0, INFINITY, "of AdamW"),
    "diffusion.batch_size": _count(400, "B"),
    "diffusion.batch_repeat": _count(1, "how often each batch is delivered; 3 in the public code"),
    "diffusion.epochs": _count(1000, "at most", most=_MOST_TURNS),
    "diffusion.patience": _count(10, "evaluations without a new best before stopping"),
    "diffusion.evaluate_every": _count(1, "epochs between evaluations"),
    "diffusion.block": _count(256, "users at a time in inference"),
    # Plugins.
    "hbr.rank_weight": _number(0.1, 0, 1, "omega_r, share of the rank term"),
    "hbr.clip": _number(3.0, 1e-6, 1e6, "c_w, the largest weight before scaling"),
    "hbr.floor": _among(
        "protocol",
        ("protocol", "observed", "shifted"),
        "which score maps to 0: the lowest observed one, or one below it, or the protocol's choice",
    ),
    "hbr.scale": _number(2.0, 1e-6, 1e6, "omega_f, factor of all weights"),
    "nns.first_fraction": _number(
        0.5, 0, 0.98, "omega_m, share of the ranking that is too likely to be negative"
    ),
    "nns.kept": _count(512, "R, negatives kept a user"),
    "nns.refresh_epochs": _count(
        0, "epochs after which R others are drawn from the user's whole pool, 0: never", least=0
    ),
    "nns.drawn": _count(1, "safe negatives a position", most=_MOST_DRAWN),
    "nns.placement": _among(
        "beside",
        ("beside", "instead"),
        "safe negatives come beside the uniform ones, or in place of as many, which gives a "
        "variant as many as its base",
    ),
    "dpa.coarse": _count(50, "M, candidates of the diffusion model"),
    "dpa.pool": _among(
        "protocol",
        ("protocol", "unobserved", "all"),
        "what the candidates are taken from: unobserved items, all, or the protocol's choice",
    ),
    "dpa.fine": _count(5, "N, picks of the encoder"),
    "dpa.drawn": _count(
        0,
        "candidates drawn as positives at every position, in place of the encoder's picks at the "
        "last; 0 for the picks",
        least=0,
        most=_MOST_DRAWN,
    ),
    "dpa.draw_by": _among(
        "uniform",
        ("uniform", "rank"),
        "how a position draws of its candidates where it does: all alike, or nearly by 1 / rank",
    ),
    "dpa.weight": _number(0.3, 0, INFINITY, "omega_d, weight of the soft positives"),
    # Encoder.
    "encoder.name": _text(
        "sasrec",
        "which encoder: sasrec, gru4rec, cl4srec or a registered one, see docs/encoders.md",
    ),
    "encoder.variants": _names(
        ("base", "hbr+nns+dpa"), "what to train: 'base', or plugins joined by +"
    ),
    "encoder.width": _count(64, "D", most=_MOST_WIDTH),
    "encoder.blocks": _count(2, "layers; GRU4Rec has one", most=_MOST_LAYERS),
    "encoder.heads": _count(1, "attention heads; GRU4Rec has none"),
    "encoder.dropout": _number(0.2, 0, 0.99, "everywhere in the encoder; GRU4Rec has none"),
    "encoder.max_length": _count(
        200, "L, events of a history that are used", least=2, most=_MOST_TURNS
    ),
    "encoder.attend_padding": _flag(
        True, "attend to left padding, as the public code does; GRU4Rec does not"
    ),
    "encoder.crop": _number(0.6, 0, 1, "CL4SRec: share of a history that a crop keeps"),
    "encoder.mask": _number(0.3, 0, 1, "CL4SRec: share of a history that is masked"),
    "encoder.reorder": _number(0.6, 0, 1, "CL4SRec: share of a history that is shuffled"),
    "encoder.contrast_weight": _number(0.1, 0, INFINITY, "CL4SRec: of the contrastive loss"),
    "encoder.contrast_temperature": _number(
        1.0, 0, INFINITY, "CL4SRec: of the contrastive loss", open_low=True
    ),
    "encoder.temperature": _number(5.0, 0, INFINITY, "of the cosine scores", open_low=True),
    "encoder.learning_rate": _number(0.005, 0, INFINITY, "of Adam", open_low=True),
    "encoder.learning_rate_decay": _number(0.99, 0, 1, "factor an epoch", open_low=True),
    "encoder.row_adam_above": _count(
        50_000, "items beyond which Adam works row by row; equal but for rounding"
    ),
    "encoder.negatives": _count(
        1, "uniform negatives a position, see nns.placement", most=_MOST_DRAWN
    ),
    "encoder.positive_weight": _number(
        1.0, 0, INFINITY, "of the observed items in the loss, beside HBR's own", open_low=True
    ),
    "encoder.history_weight": _number(
        0.0, 0, INFINITY, "of an item of the user's history that a position draws as a positive"
    ),
    "encoder.batch_size": _count(128, "B"),
    "encoder.batch_repeat": _count(1, "how often each batch is delivered; 3 in the public code"),
    "encoder.epochs": _count(1000, "at most", most=_MOST_TURNS),
    "encoder.patience": _count(10, "evaluations without a new best before stopping"),
    "encoder.first_evaluation": _count(51, "epoch of the first evaluation"),
    "encoder.min_epochs": _count(100, "no early stop before this epoch", least=0),
    "encoder.evaluate_every": _count(1, "epochs between evaluations"),
    "encoder.block": _count(256, "users at a time in evaluation"),
    "evaluation.negatives": _count(99, "sampled negatives a user"),
}

# What may differ between a run and its resumption.
FREE_FIELDS = (
    "stage",
    "strict_overrides",  # what they set is compared
    "reference_overrides",
    "gru4rec_overrides",
    "seeds_at_once",
    "mesh",
    "save_seconds",
    "save_async",
    "progress",
    "tensorboard",
    "compilation_cache",
    "data.source",  # the workdir records which it was
    "data.dir",
    "data.path",  # its log is known by its checksum
    "data.origin",
    "diffusion.block",  # how many users go together changes what a pass costs, and no draw
    "encoder.block",
)


def default_config() -> ConfigDict:
    """Returns a config with every field at its default."""
    config = ConfigDict()
    for path, field in FIELDS.items():
        section, _, name = path.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict()
        (config[section] if section else config)[name] = field.default
    return config


def get(config: ConfigDict, path: str) -> Any:
    """Returns the field at a dotted path."""
    section, _, name = path.rpartition(".")
    return (config[section] if section else config)[name]


def put(config: ConfigDict, path: str, value: Any) -> None:
    """Sets the field at a dotted path.

    Raises:
      UserError: no such field.
    """
    require_field(path)
    section, _, name = path.rpartition(".")
    (config[section] if section else config)[name] = value


def seeded(config: ConfigDict, section: str) -> ConfigDict:
    """Returns a copy of a section with the run's seed beside its own fields."""
    return ConfigDict({**config[section].to_dict(), "seed": config.seed})


def flatten(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    """Yields (dotted path, value) of every field that a config holds."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from ((f"{name}.{inner}", leaf) for inner, leaf in flatten(value))
        else:
            yield name, value


def require_field(path: str) -> None:
    """Checks that there is a field of that name.

    Raises:
      UserError: there is none; names the one that is spelled most like it.
    """
    if path in FIELDS:
        return
    fields = [field for field in FIELDS if field.startswith(f"{path}.")]
    if fields:
        raise UserError(f"config.{path}: is a section; set its fields, such as config.{fields[0]}")
    near = difflib.get_close_matches(path, FIELDS, n=1)
    raise UserError(
        f"config.{path}: unknown field" + (f", did you mean config.{near[0]}?" if near else "")
    )


def misfit(path: str, value: Any, where: str = "config.") -> UserError:
    """Returns the error for a value that a field cannot have."""
    return UserError(f"{where}{path}: {FIELDS[path].expected} is expected, got {value!r}")


def require_fields(config: ConfigDict) -> None:
    """Checks every field's name, type and range.

    Raises:
      UserError: the first that is wrong.
    """
    found = dict(flatten(config))
    for path in found:
        require_field(path)
    for path, field in FIELDS.items():
        if path not in found:
            raise UserError(f"config.{path}: missing, {field.expected} is expected")
        if not field.fits(found[path]):
            raise misfit(path, found[path])


def differences(
    config: ConfigDict, other: ConfigDict | dict[str, Any], source: str = "simulated"
) -> list[str]:
    """Lists the fields in which two configs differ, those that may change between runs left out.

    A field that an older run's config lacks has had its default. A run of several seeds may get
    more of them, so only one and several differ.

    Args:
      config: of a run.
      other: of another one, which may be older.
      source: of the log of both; where it is ``real`` nothing reads ``simulation.``.
    """
    free = [*FREE_FIELDS]
    if source == "real":
        free += [path for path in FIELDS if path.startswith("simulation.")]
    left, right = dict(flatten(config)), dict(flatten(ConfigDict(other)))

    def value(found: dict[str, Any], path: str) -> Any:
        one: Any = found.get(path, FIELDS[path].default if path in FIELDS else None)
        return one > 1 if path == "seeds" else _plain(one)

    return [
        path
        for path in sorted(left.keys() | right.keys())
        if path not in free and value(left, path) != value(right, path)
    ]


def _plain(value: Any) -> Any:
    """Makes a value comparable with one that was read from JSON, which has no tuples."""
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
