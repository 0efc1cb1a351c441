"""Writes a trained encoder as StableHLO with its parameters, vectors and ids.

Letters: B users, L events of a history that are used, K seen items, k items recommended, I items, D
width.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export
from numpy.typing import NDArray

from pdrec_jax import __version__
from pdrec_jax.data.columns import shown
from pdrec_jax.diffusion.selection import top
from pdrec_jax.encoders.layers import Rows, normalise
from pdrec_jax.encoders.model import EncoderModel, Params
from pdrec_jax.errors import UserError
from pdrec_jax.export.readme import readme
from pdrec_jax.files import (
    atomic_savez,
    atomic_write,
    atomic_write_bytes,
    atomic_write_text,
    beside,
    read_json,
    replace_directory,
    require_elsewhere,
    write_errors,
)
from pdrec_jax.recommend.models import load_encoder, require_encoder
from pdrec_jax.recommend.recommender import Recommender

MANIFEST = "artifact.json"
_OURS = {
    *("README.md", "recommend.jax", "user_vectors.jax", "parameters.npz"),
    *("item_ids.npy", "item_vectors.npy", "item_vectors.parquet", MANIFEST),
}
PLATFORMS = ("cpu", "cuda", "tpu")

Flat = dict[str, Array]


def write_artifact(recommender: Recommender, out: Path, k: int) -> dict[str, Any]:
    """Writes the artifact of an encoder.

    Args:
      recommender: of an encoder.
      out: directory to make; an earlier artifact there is replaced.
      k: items that the exported function returns; fewer are the first of them.

    Returns:
      the content of ``artifact.json``.

    Raises:
      UserError: a diffusion model, or a directory that is in the way; nothing is written then.
    """
    require_encoder(recommender.trained)
    require_free(out)
    _require_flatbuffers()
    place, trained, catalogue = recommender.place, recommender.trained, recommender.catalogue
    encoder = load_encoder(place, trained, catalogue, block=1)
    model, targets = encoder.model, catalogue.num_target_items
    k = min(k, targets)
    users = export_users(model, encoder.params)
    recommend = export_recommend(model, encoder.params, targets, k)
    flat, _ = flatten(encoder.params)
    vectors = np.asarray(encoder.item_vectors())[1 : targets + 1]
    manifest = {
        "model": trained.name,
        "variant": trained.key,
        "run": place.config.name,
        "data": place.data["source"],
        "length": model.max_length,
        "k": k,
        "items": catalogue.num_items,
        "items_recommended": targets,
        "width": int(vectors.shape[1]),
        "platforms": list(recommend.platforms),
        "written_by": {"pdrec_jax": __version__, "jax": jax.__version__},
    }
    require_finite(flat, place.path)
    whole = out.resolve()  # a link stays, and `.` has a name
    temporary = beside(whole)
    with write_errors(out):
        whole.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            atomic_write_bytes(temporary / "recommend.jax", bytes(recommend.serialize()))
            atomic_write_bytes(temporary / "user_vectors.jax", bytes(users.serialize()))
            atomic_savez(
                temporary / "parameters.npz", **{n: np.asarray(v) for n, v in flat.items()}
            )
            _save(temporary / "item_ids.npy", catalogue.item_ids[1:])
            _save(temporary / "item_vectors.npy", vectors)
            _write_parquet(
                temporary / "item_vectors.parquet", catalogue.item_ids[1 : targets + 1], vectors
            )
            name = whole.name if out.name in ("", "..") else out.name
            atomic_write_text(temporary / "README.md", readme(manifest, name))
            atomic_write_text(temporary / MANIFEST, json.dumps(manifest, indent=2) + "\n")
            require_free(out)
            replace_directory(temporary, whole)
        except UserError as error:
            # Names the file as it would have been: nobody knows the temporary folder.
            raise UserError(str(error).replace(str(temporary), str(out))) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _require_flatbuffers() -> None:
    # Its absence would be found after the work is done, by an error of jax's own.
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError(
            "export: jax.export writes files by the package flatbuffers, which is not there; "
            "pip install '.[export]' in the folder of the source code"
        )


def require_free(out: Path) -> None:
    """Checks that a directory can be made, or holds an artifact alone, which may be replaced.

    Raises:
      UserError: something else is in the way, or would be deleted.
    """
    with write_errors(out):
        require_elsewhere(out)
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
        ours = _is_artifact(out)
        names = sorted(path.name for path in out.iterdir()) if ours else []
    if not ours:
        raise UserError(f"{out}: is there and is no artifact; name another --out")
    if strange := [name for name in names if name not in _OURS]:
        raise UserError(
            f"{out}: holds {shown(strange[0])}, which is no part of an artifact and would be "
            "deleted; move it, or name another --out"
        )


def _is_artifact(path: Path) -> bool:
    """Whether a directory's manifest is one that this command wrote."""
    try:
        written_by = (read_json(path / MANIFEST) or {}).get("written_by")
    except UserError:  # somebody else's file of that name
        return False
    return isinstance(written_by, dict) and "pdrec_jax" in written_by


def require_finite(parameters: Flat, path: Path) -> None:
    """Checks that a model's parameters are numbers.

    Raises:
      UserError: some are not.
    """
    for name, array in parameters.items():
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {name} of its model is not finite; train it anew")


@dataclasses.dataclass(frozen=True)
class Names:
    """How nested parameters lie in a flat dictionary.

    Attributes:
      paths: of each array, ``blocks/0/attention/query``.
      structure: of the nested dictionaries, whose arrays come in that order.
    """

    paths: tuple[str, ...]
    structure: Any

    def nested(self, flat: Flat) -> Params:
        """Puts the arrays where they belong."""
        return jax.tree.unflatten(self.structure, [flat[path] for path in self.paths])


def flatten(params: Params) -> tuple[Flat, Names]:
    """Names each array of nested parameters by its path."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    flat = {"/".join(str(part.key) for part in path): leaf for path, leaf in leaves}
    return flat, Names(tuple(flat), structure)


def vectors_of(model: EncoderModel, params: Params, histories: Array) -> Array:
    """The users' vectors, [B, D], from one history a row, as an artifact is given them.

    Args:
      model: static description.
      params: of the encoder.
      histories: [B, L] int32, the last L items, at the right end; 0 where a history is shorter.
    """
    length = model.max_length

    def one(history: Array) -> Array:
        # A user alone: all shapes are known, whatever B is, to any encoder of one's own.
        items = history[None, :]
        used = jnp.sum(items > 0, axis=1, dtype=jnp.int32)
        segment = jnp.where(items > 0, 0, 1).astype(jnp.int32)
        position = jnp.arange(length, dtype=jnp.int32)[None, :]
        pads = jnp.broadcast_to(length - used[:, None], items.shape)
        rows = Rows(items, segment, position, pads)
        vectors = params["item_embedding"][items]
        states = model.encoder(params).encode([vectors], [rows], None)[0]
        return normalise(states[0, -1])

    return model.temperature * jax.vmap(one)(histories)


def export_users(model: EncoderModel, params: Params) -> export.Exported:
    """Exports ``(parameters, histories [B, L]) -> users' vectors [B, D]``; B is symbolic."""
    flat, names = flatten(params)
    (users,) = export.symbolic_shape("b")

    def user_vectors(parameters: Flat, histories: Array) -> Array:
        return vectors_of(model, names.nested(parameters), histories)

    return _export(user_vectors, flat, _ids(users, model.max_length))


def export_recommend(
    model: EncoderModel, params: Params, last_item: int, k: int
) -> export.Exported:
    """Exports ``(parameters, histories [B, L], seen [B, K]) -> items, scores [B, k]``.

    B and K are symbolic. Items in ``seen`` are left out; 0 in it stands for none, and among the
    items for one that is lacking.
    """
    flat, names = flatten(params)
    users, most_seen = export.symbolic_shape("b, s")

    def recommend(parameters: Flat, histories: Array, seen: Array) -> tuple[Array, Array]:
        params = names.nested(parameters)
        items = normalise(params["item_embedding"])[: last_item + 1]
        scores = jnp.dot(vectors_of(model, params, histories), items.T)

        def best(scores: Array, seen: Array) -> tuple[Array, Array]:
            scores = scores.at[seen].set(-jnp.inf, mode="drop").at[0].set(-jnp.inf)
            found = top(scores, k)
            return found, scores[found]

        found, figures = jax.vmap(best)(scores, seen)
        return jnp.where(figures > -jnp.inf, found, 0), figures

    return _export(recommend, flat, _ids(users, model.max_length), _ids(users, most_seen))


def _ids(rows: Any, columns: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows, columns), jnp.int32)


def _export(
    function: Callable[..., Any], flat: Flat, *arguments: jax.ShapeDtypeStruct
) -> export.Exported:
    """Exports for all platforms, or for those that an encoder of one's own can be lowered for."""
    like = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in flat.items()}

    def of(platforms: Sequence[str]) -> export.Exported:
        return export.export(jax.jit(function), platforms=platforms)(like, *arguments)

    try:
        return of(PLATFORMS)
    except (NotImplementedError, ValueError):
        able = [platform for platform in PLATFORMS if _lowers(of, platform)]
        if not able:
            raise
        return of(able)


def _lowers(of: Callable[[Sequence[str]], export.Exported], platform: str) -> bool:
    try:
        of([platform])
    except (NotImplementedError, ValueError):
        return False
    return True


def _save(path: Path, array: NDArray) -> None:
    save = functools.partial(np.save, arr=array, allow_pickle=False)
    atomic_write(path, save)


def _write_parquet(path: Path, ids: NDArray, vectors: NDArray[np.float32]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    width = vectors.shape[1]
    rows = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width)
    table = pa.table({"item": pa.array(ids), "vector": rows})
    atomic_write(path, functools.partial(pq.write_table, table))
