"""What a run takes of another one: its diffusion model, or the preferences of its users."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from pdrec_jax.checkpoints import Store
from pdrec_jax.diffusion.preferences import Preferences, identity, load_preferences
from pdrec_jax.errors import UserError
from pdrec_jax.given import Given, pool_rules
from pdrec_jax.settings import seeded
from pdrec_jax.workdir import Workdir, saved_config, seed_folder

# Fields of a diffusion model's section that do not decide what is trained. Another seed trains
# another model of the same kind.
_OF_NO_MODEL = ("seed", "block", "both")
# Those beside them that need not have made other preferences: when training looks at itself and
# stops, and the weighting, of which it counts what came of it on the log.
_OF_NO_PREFERENCES = (*_OF_NO_MODEL, "patience", "evaluate_every", "weighting")
IDENTITY = "identity"  # of borrowed preferences, in the record of their phase


def of_seed(path: str, seed: int) -> Path:
    """Where a seed reads what another run left: in that run's folder of the same seed.

    A run of a single seed has one folder for all, so what it left is shared.

    Raises:
      UserError: the run has several seeds, and not this one.
    """
    own = Path(path) / seed_folder(seed)
    if own.is_dir():
        return own
    saved = saved_config(Path(path))
    if saved is not None and saved.seeds > 1:
        raise UserError(f"{path}: a run of several seeds, without seed {seed}, which is to read it")
    return Path(path)


def other_weighting(config: ConfigDict) -> str:
    """The weighting that ``diffusion.both`` asks for beside the run's own."""
    return "position" if config.diffusion.weighting == "time" else "time"


def diffusion_models(config: ConfigDict) -> list[str]:
    """The diffusion models of a run, by the names of their phases."""
    return ["diffusion", *[f"diffusion-{other_weighting(config)}"] * bool(config.diffusion.both)]


def source_of_model(given: Given, section: ConfigDict) -> Path:
    """The run whose diffusion model serves for a section of the config, see ``require_model``."""
    source = of_seed(given.config.diffusion_from, given.config.seed)
    other = seeded(Workdir.open(source).config, "diffusion")
    for name, value in section.items():
        if name not in _OF_NO_MODEL and other[name] != value:
            raise UserError(
                f"config.diffusion_from: the model in {source} has diffusion.{name} "
                f"{other[name]!r}, expected {value!r}"
            )
    made, here = Store(source).restore_meta("preferences"), origin(given)
    for name in ("protocol", "split", "weighting"):
        expected = here[name]
        if made.get(name, expected) != expected:
            raise UserError(
                f"config.diffusion_from: the model in {source} was trained with another {name} "
                f"({_shown(made[name])}), expected {_shown(expected)}"
            )
    for key in diffusion_models(given.config):
        if Store(source / key).step("best") is None:
            raise UserError(f"config.diffusion_from: {source / key}: no trained model is there")
    return source


def read_preferences(given: Given, workdir: Path) -> Preferences:
    """Reads the preferences of this run or of another one.

    What their maker did not write down is not compared, but for the shapes.

    Raises:
      UserError: there are none, or they were made from other data, by other rules, or under another
        protocol, whose preferences may have seen what this one holds out.
    """
    store = Store(workdir)
    made = store.restore_meta("preferences")
    for name, expected in origin(given).items():
        if made.get(name, expected) != expected:
            raise UserError(
                f"{workdir}: its preferences were made with another {name} "
                f"({_shown(made[name])}), expected {_shown(expected)}"
            )
    return load_preferences(store, given.split, pool_rules(given.config, given.protocol))


def read_borrowed(given: Given, place: Workdir) -> Preferences:
    """Reads the preferences of another run for the run that is in a directory.

    Raises:
      UserError: see ``read_preferences``; or the run has begun with others, which were in their
        place before.
    """
    source = of_seed(given.config.preferences_from, given.config.seed)
    preferences = read_preferences(given, source)
    begun = (place.phases.find("preferences") or {}).get(IDENTITY)
    if begun is not None and begun != identity(preferences):
        raise UserError(
            f"config.preferences_from: the preferences in {source} are others than those that the "
            f"run in {place.path} was begun with; name another --workdir, or put those back"
        )
    return preferences


def require_like_source(config: ConfigDict, by_hand: Collection[str]) -> None:
    """Checks that no field set by hand says otherwise of preferences than the run they are from.

    Args:
      config: of a run that is to begin, and needs preferences.
      by_hand: the fields that the command line sets; what a config file has is not held against
        another run, which may have been made with another variant of it.

    Raises:
      UserError: one does.
    """
    if not config.preferences_from or config.preferences_by != "diffusion":
        return
    source = of_seed(config.preferences_from, config.seed)
    saved = saved_config(source)
    if saved is None or saved.preferences_by != "diffusion":
        return
    for name, value in config.diffusion.items():
        other = saved.diffusion[name]
        if f"diffusion.{name}" in by_hand and name not in _OF_NO_PREFERENCES and other != value:
            raise UserError(
                f"config.preferences_from: the preferences in {source} were made with "
                f"diffusion.{name} {other!r}, expected {value!r}"
            )


def origin(given: Given) -> dict[str, Any]:
    """What preferences were made of and how, by which they are known again."""
    split = given.split
    digest = hashlib.sha256()
    for array in (split.train.offsets, split.train.items, split.valid_items, split.test_items):
        digest.update(np.ascontiguousarray(array).data)  # a view: of a mapped log no copy is made
    weighting = "any"  # of a model without weights
    if given.config.preferences_by == "diffusion":
        weighting = "position"
        if given.config.diffusion.weighting == "time" and split.train.times is not None:
            times = np.ascontiguousarray(split.train.times).data
            weighting = f"time {hashlib.sha256(times).hexdigest()[:7]}"
    rules = dataclasses.asdict(pool_rules(given.config, given.protocol))
    if not rules["whole_pools"]:
        del rules["whole_pools"]  # as those wrote it that could not keep the pools
    if not split.learns_source:
        rules["catalogue"] = "target"
    return {
        "protocol": given.protocol.name,
        "split": digest.hexdigest(),
        "rules": rules,
        "maker": given.config.preferences_by,
        "weighting": weighting,
    }


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return str(value)[:12]
