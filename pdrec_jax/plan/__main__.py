"""Says what a job would need on devices that are not here, before anybody pays for them.

python -m pdrec_jax.plan --config=FILE --topology=v5e:16x16 [--mesh=DATA,MODEL]
    [--users=U --items=I --events=N] [--price=DOLLARS] [--config.FIELD=VALUE ...]

Every program of the job is compiled for the topology, on shapes alone, and read: memory a device,
operations, bytes, collectives, the time at best and what binds it. TPUs (v4, v5e, v5p, v6e) need
the extra `tpu`, no TPU; for GPUs (h100:8x2 are 2 machines of 8) the same is estimated by formulas.

  --topology   devices, as above
  --mesh       of the devices; config.mesh where not given
  --users      how many; that of the log where not given, and so for the next two
  --items      how many
  --events     of each user, the two held out included
  --price      dollars an hour of one device; the list price where not given

Status 3: it does not fit, and which mesh would fit is said.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence

from pdrec_jax.command import Parser, answered, leave
from pdrec_jax.data.sources import find_files, validated
from pdrec_jax.errors import UserError
from pdrec_jax.main import parse
from pdrec_jax.overrides import apply_overrides, validate
from pdrec_jax.plan.hardware import parse_mesh, parse_topology

_MOST = 1e15  # far beyond any log, and exact as a float


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; see the module.

    Args:
      argv: arguments without the program's name; those of the process where not given.

    Returns:
      the exit status, see ``command.answered``; 3 where the job does not fit.
    """
    parser = Parser(
        prog="python -m pdrec_jax.plan",
        usage=None,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--topology", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--mesh", help=argparse.SUPPRESS)
    for name in ("users", "items", "events"):
        parser.add_argument(f"--{name}", type=_count, help=argparse.SUPPRESS)
    parser.add_argument("--price", type=float, help=argparse.SUPPRESS)
    return answered(lambda: _plan(*parser.parse_known_args(argv)), "nothing was planned")


def _count(text: str) -> int:
    """Reads 100000000, 100_000_000 or 1e8."""
    if not re.fullmatch(r"\d[\d_]*|\d+(\.\d+)?e\d+", text):
        raise argparse.ArgumentTypeError(f"a number such as 1e6 is expected, got {text!r}")
    found = float(text) if "e" in text else int(text.replace("_", "")[:20])
    if not found <= _MOST:
        raise argparse.ArgumentTypeError(f"at most {_MOST:.0e} is expected, got {text[:20]!r}")
    return int(found)


def _plan(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    topology = parse_topology(arguments.topology)
    command = parse(["plan", *rest])
    for flag in ("workdir", "coordinator", "num_processes", "process_id"):
        if getattr(command, flag) is not None:
            raise UserError(f"--{flag}: says nothing to a plan, which runs nothing; leave it out")
    config = validated(command.config, command.by_hand)
    if arguments.price is not None and not 0 <= arguments.price < math.inf:
        raise UserError(f"--price: at least 0 is expected, got {arguments.price:g}")
    shape = parse_mesh(arguments.mesh or ",".join(map(str, config.mesh)), topology.count)
    # Imported here, so that a mistyped flag is answered before JAX is loaded.
    from pdrec_jax.plan import search
    from pdrec_jax.plan.sizes import require_planned, sizes_of

    given = [arguments.users, arguments.items, arguments.events]
    if None in given and find_files(config) is None:
        if given == [None] * 3:  # the shortened run on a simulated log
            config = apply_overrides(config, command.by_hand)
            validate(config)
        elif config.data.source != "simulated":
            # A job of these sizes is no shortened one, and who plans it knows the others.
            raise UserError(
                "--users, --items, --events: the log that the others would be taken from is not "
                "here; all three are expected, or --config.data.source=simulated"
            )
    require_planned(config)
    sizes = sizes_of(config, arguments.users, arguments.items, arguments.events)
    return search.run(config, sizes, topology, shape, arguments.price)


if __name__ == "__main__":
    leave(main())
