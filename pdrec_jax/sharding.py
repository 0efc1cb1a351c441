"""Where arrays lie: the mesh of devices, the rules by a parameter's name, lookups in split tables.

The mesh has two axes. Batches and users lie on ``data``. What is as long as the catalogue lies on
``model``, its rows padded with zeros to a multiple of that axis; all else is on every device. A
mesh of one device is ``None``: there the code is the one that knows of no mesh.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pdrec_jax.errors import UserError

DATA, MODEL = "data", "model"
Tables = tuple[tuple[str, ...], ...]
OF_DENOISER: Tables = (("item_kernel",), ("output", "kernel"), ("output", "bias"))
OF_ENCODER: Tables = (("item_embedding",), ("row_age",))
"""Ends of the names of arrays that have a row an item; so end those of parameters' moments."""

Tree = Any


def mesh_shape(wanted: Sequence[int], devices: int, *, all_of_them: bool) -> tuple[int, int]:
    """Resolves ``config.mesh``.

    Args:
      wanted: (data, model); -1, once, for as many as there are.
      devices: how many there are.
      all_of_them: whether none may be left over, as among several processes.

    Returns:
      (data, model).

    Raises:
      UserError: they do not fit.
    """
    data, model = wanted
    if data == -1:
        data = devices // model
    elif model == -1:
        model = devices // data
    used = data * model
    fits = used == devices if all_of_them or -1 in wanted else 0 < used <= devices
    if not fits:
        many = "a divisor of" if -1 in wanted else "all of" if all_of_them else "at most"
        raise UserError(
            f"config.mesh: {many} {devices} devices is expected, got {tuple(wanted)}, on "
            f"{jax.process_count()} processes"
        )
    return data, model


@functools.cache
def make_mesh(wanted: tuple[int, int]) -> Mesh | None:
    """Makes the mesh of a run; None for one device.

    Where the devices are slices of a TPU pod, joined by a slower network, that network is in the
    axis ``data`` alone.

    Args:
      wanted: ``config.mesh``.

    Raises:
      UserError: see ``mesh_shape``.
    """
    devices = jax.devices()
    several = jax.process_count() > 1
    data, model = mesh_shape(wanted, len(devices), all_of_them=several)
    if data * model == 1:
        return None
    kinds = (AxisType.Auto, AxisType.Auto)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        from jax.experimental import mesh_utils

        if data % slices:
            raise UserError(
                f"config.mesh: a data axis that {slices} slices divide is expected, got {data}"
            )
        inside, across = (data // slices, model), (slices, 1)
        array = mesh_utils.create_hybrid_device_mesh(inside, across, devices)
        return Mesh(array, (DATA, MODEL), axis_types=kinds)
    return mesh_of(devices[: data * model], data, model)


def mesh_of(devices: Sequence[jax.Device], data: int, model: int) -> Mesh:
    """Makes a mesh of one slice's devices, which need not be here.

    Args:
      devices: data * model.
      data: size of the axis.
      model: likewise.

    Raises:
      NotImplementedError: the axes do not lie on those of the devices' torus.
    """
    kinds = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, model), (DATA, MODEL), axis_types=kinds, devices=devices)


def axis(mesh: Mesh | None, name: str) -> int:
    """Returns the size of an axis, 1 without a mesh."""
    return 1 if mesh is None else int(mesh.shape[name])


def round_up(count: int, multiple: int) -> int:
    """Returns the smallest multiple that is not below a count."""
    return -(-count // multiple) * multiple


def tables_in(tree: Tree) -> Tables:
    """Returns the ends of names that item tables have in a tree.

    They are told apart because an encoder of one's own may have a layer ``output``, too.

    Args:
      tree: parameters of a denoiser or of an encoder, or a state with them.
    """
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return OF_DENOISER if any(is_item_table(p, OF_DENOISER[:1]) for p, _ in paths) else OF_ENCODER


def is_item_table(path: Sequence[Any], tables: Tables) -> bool:
    """Whether a leaf at a path of a tree has a row an item, by its name."""
    names = tuple(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)
    return any(names[-len(end) :] == end for end in tables)


def padded(tree: Tree, mesh: Mesh) -> Tree:
    """Appends zero rows to a tree's item tables, so that ``model`` divides their rows."""
    parts, tables = axis(mesh, MODEL), tables_in(tree)

    def pad(path: Sequence[Any], leaf: Array) -> Array:
        if not is_item_table(path, tables):
            return leaf
        more = -leaf.shape[0] % parts
        return jnp.pad(leaf, ((0, more), *[(0, 0)] * (leaf.ndim - 1)))

    return jax.tree_util.tree_map_with_path(pad, tree)


def shardings(tree: Tree, mesh: Mesh) -> Tree:
    """Says where each leaf of a tree lies, by its name."""
    tables = tables_in(tree)

    def of(path: Sequence[Any], leaf: Any) -> NamedSharding:
        del leaf
        spec = PartitionSpec(MODEL) if is_item_table(path, tables) else PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(of, tree)


def constrain(tree: Tree, mesh: Mesh | None) -> Tree:
    """Within compiled code: keeps a tree where ``shardings`` says."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


def spread(tree: Tree, mesh: Mesh | None, *spec: str | None) -> Tree:
    """Within compiled code: lays the arrays of a tree out by axes; the compiler pads what is odd.

    Args:
      tree: of arrays.
      mesh: None leaves them as they are.
      spec: an axis of the mesh for each of the first axes of the arrays; none at all for a copy on
        every device.
    """
    if mesh is None:
        return tree
    where = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, where), tree)


def abstract(make: Callable[[], Tree], mesh: Mesh | None) -> Tree:
    """Returns shapes, types and places of what ``make`` returns, without making it."""
    like = jax.eval_shape(make)
    if mesh is None:
        return like
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        like,
        shardings(like, mesh),
    )


def made_in_place(make: Callable[[], Tree], mesh: Mesh | None) -> Callable[[], Tree]:
    """Compiles a function that makes a tree, so that each device makes its own part of it.

    On a mesh the item tables are padded; their other rows are those of a single device.
    """
    if mesh is None:
        return make

    def whole() -> Tree:
        return padded(make(), mesh)

    return jax.jit(whole, out_shardings=shardings(jax.eval_shape(whole), mesh))


def from_parts(
    mesh: Mesh, shape: tuple[int, ...], dtype: Any, along: int, part: Callable[[int], np.ndarray]
) -> Array:
    """Puts together an array that lies on ``data`` from parts, of which a process makes its own.

    Args:
      mesh: of the devices.
      shape: of the whole array.
      dtype: of the array.
      along: the axis that is on ``data``; its size is that of the mesh.
      part: from the place on ``data`` to the array without that axis; called at least once for
        each place of this process, and for no other.
    """
    spec = PartitionSpec(*[None] * along, DATA)

    def of(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        begin, end, _ = index[along].indices(shape[along])
        parts = [part(place) for place in range(begin, end)]
        return np.stack(parts, axis=along).astype(dtype, copy=False)

    return jax.make_array_from_callback(shape, NamedSharding(mesh, spec), of)


def lookup(table: Array, ids: Array, mesh: Mesh | None) -> Array:
    """Reads rows of an item table, ``table[ids]``; each device adds what it holds.

    Args:
      table: [I, ...], its rows on ``model``.
      ids: [...] int32.
      mesh: None for a table on one device.

    Returns:
      [..., ...], the same on all of ``model``.
    """
    if mesh is None or axis(mesh, MODEL) == 1:
        return table[ids]

    def own(part: Array, ids: Array) -> Array:
        return jax.lax.psum(held_rows(part, ids), MODEL)

    rows, everywhere = PartitionSpec(MODEL), PartitionSpec()
    return jax.shard_map(
        own, mesh=mesh, in_specs=(rows, everywhere), out_specs=everywhere, axis_names={MODEL}
    )(table, ids)


def first_row(part: Array) -> Array:
    """Within ``shard_map``: the id of the first row of a part of a table, [] int32."""
    return jax.lax.axis_index(MODEL).astype(jnp.int32) * part.shape[0]


def held_rows(part: Array, ids: Array) -> Array:
    """Within ``shard_map``: rows of a table where this device holds them, else 0."""
    place = ids - first_row(part)
    held = (place >= 0) & (place < part.shape[0])
    rows = part[jnp.clip(place, 0, part.shape[0] - 1)]
    return jnp.where(held.reshape(held.shape + (1,) * (rows.ndim - held.ndim)), rows, 0)


def held_columns(scores: Array, items: Array) -> Array:
    """Within ``shard_map``: columns [b, C] of a part of scores [b, i], 0 where not held."""
    place = items - jax.lax.axis_index(MODEL).astype(jnp.int32) * scores.shape[1]
    held = (place >= 0) & (place < scores.shape[1])
    taken = jnp.take_along_axis(scores, jnp.clip(place, 0, scores.shape[1] - 1), axis=1)
    return jnp.where(held, taken, 0)
