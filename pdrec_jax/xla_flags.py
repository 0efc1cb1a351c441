"""A compiler flag that keeps sums right on the CPU."""

from collections.abc import MutableMapping
from importlib import metadata

_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_AFFECTED = frozenset({"0.10.2", "0.11.0"})


def keep_sums_right(environ: MutableMapping[str, str]) -> None:
    """Turns off a fusion that makes jaxlib compute wrong sums on the CPU, without a word.

    jaxlib 0.10.2 hands the sum of a broadcast product to YNNPACK and drops the last part of a block
    (jax issue 39103, 2026: off by 0.8 % in its example, by any amount in a Jacobian of a norm).
    Only releases known to have both the fault and the flag get it, since XLA ends the process on a
    flag that it does not know. A value that the user has set stays.

    Args:
      environ: the environment, changed in place; XLA reads it when it first compiles.
    """
    flags = environ.get("XLA_FLAGS", "")
    if metadata.version("jaxlib") in _AFFECTED and _FLAG not in flags:
        environ["XLA_FLAGS"] = f"{flags} {_FLAG}=-reduce".strip()
