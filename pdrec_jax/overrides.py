"""Settings that a config has for one protocol, one encoder or a simulated log alone.

A field set by hand wins over them, and those of a protocol over those of an encoder. A config is
whole when its fields, what holds between them and these are right (``validate``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from pdrec_jax.consistency import require_consistent
from pdrec_jax.errors import UserError
from pdrec_jax.settings import FIELDS, get, misfit, put, require_fields

_OF_STAGES = ("diffusion.", "hbr.", "nns.", "dpa.", "encoder.")
_OF_PROTOCOLS = ("strict_overrides", "reference_overrides")
_OF_ENCODERS = {"gru4rec": "gru4rec_overrides"}  # the public code's README has values for it
_OVERRIDES = (*_OF_PROTOCOLS, *_OF_ENCODERS.values())


def validate(config: ConfigDict) -> None:
    """Checks every field's name, type and range, and what must hold between fields.

    Args:
      config: as a run has it, with the settings for its protocol and its log.

    Raises:
      UserError: the first that is wrong.
    """
    require_fields(config)
    require_consistent(config)
    for path in (*_OVERRIDES, "simulation.overrides"):
        _overrides_of(config, path)


def _overrides_of(config: ConfigDict, field: str) -> dict[str, Any]:
    """The settings that a field of overrides holds, by dotted path.

    Raises:
      UserError: one that there is not, that has another kind of value, or that decides on the run
        itself where only stages and plugins are set.
    """
    where, pairs = f"config.{field}: ", get(config, field)
    if not FIELDS[field].fits(pairs):
        raise misfit(field, pairs)
    for path, value in pairs:
        if path not in FIELDS:
            raise UserError(f"{where}there is no field {path!r}")
        if field in _OVERRIDES and not path.startswith(_OF_STAGES):
            raise UserError(
                f"{where}a field of {', '.join(name[:-1] for name in _OF_STAGES)} is expected, "
                f"got {path!r}"
            )
        if not FIELDS[path].fits(tuple(value) if isinstance(value, list) else value):
            raise misfit(path, value, where)
    return dict(pairs)


def apply_protocol(config: ConfigDict, by_hand: Collection[str]) -> ConfigDict:
    """Returns the config with its settings for its protocol, and those for its encoder.

    Args:
      config: as resolved, command line included.
      by_hand: the fields that the command line sets; they stay as they are.

    Raises:
      UserError: a setting that cannot be.
    """
    of_protocol = _overrides_of(config, f"{config.protocol}_overrides")
    encoder = fill(config, of_protocol, by_hand).encoder.name
    of_encoder = _overrides_of(config, _OF_ENCODERS[encoder]) if encoder in _OF_ENCODERS else {}
    if config.preferences_by == "sasrec" and not config.preferences_from:
        for path in of_encoder:
            if path.startswith("encoder.") and path not in by_hand:
                raise UserError(
                    f"config.{_OF_ENCODERS[encoder]}: {path} would be that of the SASRec too that "
                    "fills the preferences; set it by hand for both, or let a run with "
                    "config.encoder.name=sasrec fill them (config.preferences_from)"
                )
    return fill(config, {**of_encoder, **of_protocol}, by_hand)


def apply_overrides(config: ConfigDict, by_hand: Collection[str]) -> ConfigDict:
    """Returns the config of the shortened run on a simulated log.

    Args:
      config: as resolved, command line included.
      by_hand: the fields that the command line sets; they stay as they are.
    """
    return fill(config, dict(config.simulation.overrides), by_hand)


def fill(config: ConfigDict, values: Mapping[str, Any], by_hand: Collection[str]) -> ConfigDict:
    """Returns a copy of a config with other values.

    Args:
      config: as resolved.
      values: by dotted path.
      by_hand: the fields that stay as they are.
    """
    filled = config.copy_and_resolve_references()
    for path, value in values.items():
        if path not in by_hand:
            put(filled, path, value)
    return filled
