"""Where the models of a run lie, what they are like, and whether they are whole."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from pdrec_jax import processes
from pdrec_jax.checkpoints import Store
from pdrec_jax.diffusion import stage as diffusion_stage
from pdrec_jax.encoders import stage as encoder_stage
from pdrec_jax.errors import UserError, warn
from pdrec_jax.given import Given
from pdrec_jax.other_runs import other_weighting
from pdrec_jax.phases import can_compute_preferences, encoder_key, needs_preferences
from pdrec_jax.settings import seeded
from pdrec_jax.workdir import Workdir


@dataclasses.dataclass(frozen=True, eq=False)
class ModelPlace:
    """A model of a run: what it is like, and where its checkpoint lies.

    Attributes:
      key: names its phase.
      shapes: of its parameters.
      slots: ids that it knows, 0 included; an item table may have rows behind.
      store: slot ``best``.
    """

    key: str
    shapes: dict[str, Any]
    slots: int
    store: Store

    def require_shapes(self, params: dict[str, Any], where: str) -> None:
        """Checks that parameters are such a model's.

        Raises:
          UserError: the first that is missing, not expected, or of another shape.
        """

        def shapes_of(tree: dict[str, Any]) -> dict[str, tuple[int, ...]]:
            leaves = jax.tree_util.tree_leaves_with_path(tree)
            return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}

        found, expected = shapes_of(params), shapes_of(self.shapes)
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                raise UserError(
                    f"{where}: {name} is {found.get(name, 'absent')}, the config expects "
                    f"{expected.get(name, 'none')}"
                )


def model_of(given: Given, model: str, workdir: Path) -> ModelPlace:
    """Describes a model of a run.

    Args:
      given: what the phases have in common.
      model: ``diffusion``, or a variant of the encoder.
      workdir: of the run.
    """
    config, split = given.config, given.split
    if model == "diffusion":
        made, initialise = diffusion_stage.make_model(seeded(config, "diffusion"), split)
        shapes = jax.eval_shape(initialise)
        return ModelPlace(model, shapes, made.num_slots, Store(workdir / model))
    plugins, items = encoder_stage.parse_variant(model), split.train.num_items
    _, initialise = encoder_stage.make_model(config, plugins, items)
    key = encoder_key(config, model)
    shapes = jax.eval_shape(initialise)
    return ModelPlace(key, shapes, 1 + items, Store(workdir / "encoders" / key))


def damaged(config: ConfigDict, place: Workdir) -> list[str]:
    """Names the phases that are done and of which a file was damaged since.

    That is their model or preferences, or their own record or ranks. Warns of each.

    Args:
      config: of the stages that are asked for; phases of the others are not looked at.
      place: of the run.
    """
    slots: dict[str, tuple[Path, str] | None] = {}
    if config.stage != "encoder":
        for name in ("diffusion", f"diffusion-{other_weighting(config)}"):
            slots[name] = place.path / name, "best"
        if config.preferences_by == "sasrec":
            slots["sasrec"] = place.path / "encoders" / "sasrec", "best"
    if config.stage != "diffusion":
        for key in (encoder_key(config, variant) for variant in config.encoder.variants):
            slots[key] = place.path / "encoders" / key, "best"
    if config.stage != "encoder" or needs_preferences(config):
        slots["preferences"] = None if config.preferences_from else (place.path, "preferences")
    found = []
    for name, slot in slots.items():
        fault, doubted = None, False
        if processes.is_first():
            doubted = place.phases.doubted(name)
            if slot is not None and place.phases.find(name) is not None:
                directory, within = slot
                fault = Store(directory).fault(within)
        (broken,) = processes.of_first(int(doubted or fault is not None))
        if broken:
            found.append(name)
        if fault is not None:
            warn(f"{fault}; {_mending(config, place, name)}")
    return found


def _mending(config: ConfigDict, place: Workdir, name: str) -> str:
    """What is done about a phase whose model or preferences are damaged, in words."""
    if name == "preferences":
        if not can_compute_preferences(config, place):
            return "the encoder stage alone cannot compute the preferences anew"
        return "the preferences are computed anew"
    if config.diffusion_from and name.startswith("diffusion"):
        return f"{name} is taken from {config.diffusion_from} again"
    return f"{name} is trained anew"
