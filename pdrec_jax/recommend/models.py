"""Trained models as what serving needs of them: vectors of users and items, whose products score.

Letters: B users, I items, W width of the vectors, L events that an encoder uses.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from pdrec_jax.checkpoints import Store
from pdrec_jax.data.batches import enough_rows, pack
from pdrec_jax.data.catalogue import Catalogue
from pdrec_jax.data.compressed import gathered
from pdrec_jax.diffusion import stage as diffusion_stage
from pdrec_jax.diffusion.inference import DiffusionModel, couple, item_factors, user_factors
from pdrec_jax.diffusion.vectors import build_vectors, gather_batch
from pdrec_jax.encoders import stage as encoder_stage
from pdrec_jax.encoders.layers import normalise
from pdrec_jax.encoders.model import Batch, EncoderModel, Params, final_states
from pdrec_jax.errors import UserError
from pdrec_jax.recommend.histories import Histories
from pdrec_jax.settings import seeded
from pdrec_jax.workdir import Workdir

RECIPE = "fused.json"  # what `fuse` has made two models one with, see ``fused``
_TOKENS = 512


class VectorModel(Protocol):
    """A model whose score of an item for a user is the inner product of two vectors."""

    def item_vectors(self) -> Array:
        """Returns the vectors of all items, [I + 1, W]; row 0 is the padding item's."""

    def user_vectors(self, histories: Histories) -> np.ndarray:
        """Returns the vectors of users with at least one event each, [B, W]."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model of a run, as its phase recorded it.

    Attributes:
      key: of the phase, ``sasrec+hbr+nns+dpa`` or ``diffusion``.
      name: as tables show it.
      figure: NDCG@10 that chooses among variants.
      chosen_by: ``validation``, or ``test`` where the protocol has the test choose.
    """

    key: str
    name: str
    figure: float
    chosen_by: str

    @property
    def is_encoder(self) -> bool:
        """Whether it is an encoder; else it is a diffusion model."""
        return not self.key.startswith("diffusion")


def trained_models(place: Workdir) -> dict[str, Trained]:
    """Returns the models of a run whose training is over, by key.

    Raises:
      UserError: none is, or the record of one is damaged, which may be the best of them.
    """
    each = {key: trained_model(place, key) for key in place.phases.names() if key != "preferences"}
    found = {key: model for key, model in each.items() if model is not None}
    if not found and (place.path / RECIPE).is_file():
        raise UserError(
            f"{place.path}: `fuse` added two models' scores there, which `recommend` serves; the "
            "workdir of one of them is expected"
        )
    if not found and place.results() is not None:
        raise UserError(
            f"{place.path}: of this run the results were kept without its models; a workdir that "
            "has them is expected"
        )
    if not found:
        raise UserError(
            f"{place.path}: no trained model is in it yet; the command that trains it resumes it"
        )
    return found


def trained_model(place: Workdir, key: str) -> Trained | None:
    """Returns the model of a phase; None where it is not done, or trains none.

    Raises:
      UserError: its record is damaged.
    """
    model = (place.phases.require_sound(key) or {}).get("model")
    if model is None:
        return None
    try:
        kind = "test" if model["validation"] is None else "validation"
        figures: Mapping[str, float] = model["validation"] or model["sampled"]
        return Trained(key, model["name"], figures.get("NDCG@10", 0.0), kind)
    except (AttributeError, LookupError, TypeError) as error:
        raise UserError(f"{place.path}: phase {key} is not what a run writes ({error})") from error


def choose(place: Workdir, variant: str | None, *, exported: bool = False) -> Trained:
    """Returns the model that is asked for.

    Args:
      place: of the run.
      variant: of the encoder (``base``, ``hbr+nns+dpa``, plugins in any order) or the key of a
        phase (``sasrec+hbr+nns+dpa``, ``diffusion``); None for the encoder with the best figure.
      exported: an encoder alone will do.

    Raises:
      UserError: there is no such model, or no encoder to choose from; or the record of that model
        is damaged, or where the best one is asked for that of any.
    """
    if variant is None:
        models = trained_models(place)
        encoders = [model for model in models.values() if model.is_encoder]
        if not encoders:
            name = models["diffusion"].name if "diffusion" in models else "the diffusion model"
            raise UserError(
                f"{place.path}: no encoder is trained yet; "
                + "the command that trains it resumes the run" * exported
                + f"--variant=diffusion recommends by {name}" * (not exported)
            )
        return max(encoders, key=lambda model: model.figure)
    name, known = place.config.encoder.name, place.phases.names()
    for key in (variant, _ordered(f"{name}+{variant}"), _ordered(variant)):
        model = trained_model(place, key) if key in known else None
        if model is not None:
            if exported:
                require_encoder(model)
            return model
    raise UserError(
        f"--variant: {place.path} has {', '.join(trained_models(place))}, got {variant!r}"
    )


def require_encoder(trained: Trained) -> None:
    """Checks that a model can be exported.

    Raises:
      UserError: it is a diffusion model.
    """
    if not trained.is_encoder:
        raise UserError("--variant: an encoder is expected; a diffusion model is not exported")


def _ordered(key: str) -> str:
    """A key with its plugins in the order that phases give them; ``base`` is the name alone."""
    name, *plugins = key.split("+")
    known = [plugin for plugin in encoder_stage.PLUGINS if plugin in plugins]
    others = [p for p in plugins if p not in encoder_stage.PLUGINS and p != "base"]
    return "+".join([name, *known, *others])


def load_model(place: Workdir, trained: Trained, catalogue: Catalogue, block: int) -> VectorModel:
    """Restores a model from its checkpoint.

    Args:
      place: of the run.
      trained: which one.
      catalogue: of the run.
      block: users that are given at once, at most.

    Raises:
      UserError: the checkpoint is missing or broken, or the model's scores are no inner products.
    """
    if trained.is_encoder:
        return load_encoder(place, trained, catalogue, block)
    section = seeded(place.config, "diffusion")
    section.weighting = trained.key.removeprefix("diffusion").lstrip("-") or section.weighting
    return _load_diffusion(place, trained, section, catalogue, block)


def load_encoder(
    place: Workdir, trained: Trained, catalogue: Catalogue, block: int
) -> EncoderVectors:
    """``load_model`` of an encoder."""
    config = place.config
    config.encoder.name = trained.key.split("+")[0]
    model, initialise = encoder_stage.make_model(config, (), catalogue.num_items)
    store = Store(place.path / "encoders" / trained.key)
    params, _ = store.restore("best", jax.eval_shape(initialise))
    return EncoderVectors(model, params, block)


class EncoderVectors:
    """A sequential encoder: the user's vector is the temperature times the last, normalised state.

    Args:
      model: static description.
      params: of the encoder.
      block: users that are given at once, at most.
    """

    def __init__(self, model: EncoderModel, params: Params, block: int) -> None:
        self.model, self.params = model, jax.device_put(params)
        self._block = block
        self._rows: tuple[int, ...] | None = None

    def item_vectors(self) -> Array:
        """Returns the items' vectors of length 1, [>= I + 1, D]; see ``VectorModel``."""
        return item_vectors(self.params)

    def user_vectors(self, histories: Histories) -> np.ndarray:
        """Returns the users' vectors, [B, D]; see ``VectorModel``."""
        model, count = self.model, len(histories)
        offsets, items = _recent(histories, model.max_length)
        users = np.concatenate([np.arange(count), np.zeros(self._block - count, np.int64)])
        # The shapes of a block seldom differ from those before it, so little is compiled.
        self._rows = enough_rows(offsets, [users], model.max_length, model.layout, self._rows)
        cells = pack(offsets, users, model.max_length, self._rows, model.layout)
        batch = Batch(users.astype(np.int32), cells.event, cells.segment, cells.last)
        offsets = np.pad(offsets, (0, self._block - count), mode="edge").astype(np.int32)
        items = np.pad(items, (0, _power_of_two(len(items)) - len(items)))
        return np.asarray(_encoder_users(self.params, offsets, items, batch, model))[:count]


@jax.jit
def item_vectors(params: Params) -> Array:
    """The vectors of an encoder's items, [>= I + 1, D], of length 1 as its cosine takes them."""
    return normalise(params["item_embedding"])


@functools.partial(jax.jit, static_argnums=4)
def _encoder_users(
    params: Params, offsets: Array, items: Array, batch: Batch, model: EncoderModel
) -> Array:
    return model.temperature * final_states(params, model, offsets, items, batch)


def _recent(histories: Histories, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The last events of each user, offsets [B + 1] and items: more than that are never read."""
    lengths = np.minimum(histories.lengths, most)
    offsets, events = gathered(histories.offsets[1:] - lengths, lengths)
    return offsets, histories.items[events]


def _power_of_two(count: int, least: int = _TOKENS) -> int:
    return max(least, 1 << (count - 1).bit_length())


def _load_diffusion(
    place: Workdir, trained: Trained, section: ConfigDict, catalogue: Catalogue, block: int
) -> DiffusionVectors:
    source = catalogue.num_source_items if section.source_slots else 0
    slots = 1 + catalogue.num_items + source
    model, initialise = diffusion_stage.model_of_slots(section, slots)
    if not model.factored:
        raise UserError(
            f"--variant: {trained.key}: a diffusion model recommends with target 'x0' and without "
            "normalise, sampling_steps and sampling_noise; choose an encoder"
        )
    params, _ = Store(place.path / trained.key).restore("best", jax.eval_shape(initialise))
    # Of a log without times it was trained by position, whatever its weighting is called.
    by_time = section.weighting == "time" and place.config.data.time != ""
    return DiffusionVectors(section, model, params, catalogue.num_items, block, by_time=by_time)


class DiffusionVectors:
    """T- or TI-DiffRec: a user's vector is what the reverse loop hands to the output layer.

    Args:
      config: section ``diffusion``.
      model: static description, ``factored``.
      params: of the denoiser.
      num_items: I.
      block: users that are given at once, at most.
      by_time: whether the model was trained on behaviours weighed by time.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: DiffusionModel,
        params: Any,
        num_items: int,
        block: int,
        *,
        by_time: bool,
    ) -> None:
        self._by_time = by_time
        self._config, self._model, self._params = config, model, jax.device_put(params)
        coupled = couple(model, self._params)
        assert coupled is not None
        self._coupled = coupled
        self._num_items, self._block = num_items, block

    def item_vectors(self) -> Array:
        """Returns rows of the output layer with their biases, [I + 1, H + 1]."""
        return item_factors(self._params)[: self._num_items + 1]

    def user_vectors(self, histories: Histories) -> np.ndarray:
        """Returns the users' vectors, [B, H + 1]; without times behaviours count by position."""
        config, count = self._config, len(histories)
        vectors = build_vectors(
            histories.offsets,
            histories.items,
            histories.times if self._by_time else None,
            self._model.num_slots,
            w_min=config.w_min,
            w_max=config.w_max,
            ties=config.ties,
        )
        batch = gather_batch(vectors, np.arange(count), _power_of_two(len(vectors.slots)))
        # Unused tokens belong to a row that does not exist.
        rows = np.where(batch.rows == count, self._block, batch.rows)
        batch = dataclasses.replace(batch, rows=rows)
        found = _diffusion_users(self._model, self._params, self._coupled, batch, self._block)
        return np.asarray(found)[:count]


_diffusion_users = jax.jit(user_factors, static_argnums=(0, 4))
