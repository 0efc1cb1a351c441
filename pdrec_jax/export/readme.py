"""The README of an artifact, with the script that runs it."""

from __future__ import annotations

import json
from typing import Any

SCRIPT = """\
import jax, numpy as np
from jax import export

folder = "artifact/"
model = export.deserialize(bytearray(open(folder + "recommend.jax", "rb").read()))
parameters = jax.device_put(dict(np.load(folder + "parameters.npz")))
ids = np.load(folder + "item_ids.npy")
number = dict(zip(map(str, ids[::-1].tolist()), range(len(ids), 0, -1)))  # the first of two alike


def recommend(histories, k=20):  # lists of item ids, oldest first; [] where none is known
    known = [[number[i] for item in h if (i := str(item).strip()) in number] for h in histories]
    length, width = model.in_avals[-2].shape[1], max([1, *map(len, known)])
    rows = np.array([([0] * length + some)[-length:] for some in known or [[]]], np.int32)
    seen = np.array([some + [0] * (width - len(some)) for some in known or [[]]], np.int32)
    items, scores = model.call(parameters, rows, seen)
    found = zip(known, np.asarray(items)[:, :k])
    return [ids[best[best > 0] - 1].tolist() if some else [] for some, best in found]
"""


_TEXT = """\
# {model}, exported

{label}{items_recommended:,} items, the last {length} events of a history, vectors of {width}
numbers. Written by jax {jax} for {platforms}; a jax of the following six months reads it, for
longer see jax.export's promise of compatibility. It needs jax, numpy and flatbuffers (by which
jax.export reads files), and nothing of pdrec_jax. It is run beside this directory:

```python
{script}```

| file | holds |
| --- | --- |
| `recommend.jax` | `(parameters, histories [b, {length}], seen [b, s]) -> items, scores [b, {k}]` |
| `user_vectors.jax` | `(parameters, histories [b, {length}]) -> vectors [b, {width}]` |
| `parameters.npz` | the first argument of both |
| `item_ids.npy` | external ids; item n of the functions is in row n - 1 |
| `item_vectors.npy` | [{items_recommended}, {width}] float32 of length 1, in that order |
| `item_vectors.parquet` | the same with its ids, columns `item` and `vector`, for a vector index |
| `artifact.json` | these figures |

A score is the inner product of a user's vector and an item's: search an index by inner product. A
user's vector is as long as the model's temperature, so cosine gives the same order.

Histories are int32, the oldest item first, at the right end of the row; 0 fills the left. Items in
`seen` are left out of the result (all zeros: none are). b and s are free, and each pair of them is
compiled once: keep to a few. A history without a known item says nothing, and the script gives []
for it; give such a user popular items.
"""

_SIMULATED = """\
**SIMULATED DATA**: the run's log was made by the simulator, and what is recommended means nothing.

"""


def readme(manifest: dict[str, Any], name: str) -> str:
    """The README of an artifact.

    Args:
      manifest: content of ``artifact.json``.
      name: of its directory, beside which the script is run.
    """
    folder = json.dumps(f"{name}/", ensure_ascii=False)  # which Python reads as well
    words = {
        "label": _SIMULATED if manifest["data"] == "simulated" else "",
        "jax": manifest["written_by"]["jax"],
        "platforms": ", ".join(manifest["platforms"]),
        "script": SCRIPT.replace('"artifact/"', folder),
    }
    return _TEXT.format(**{**manifest, **words})
