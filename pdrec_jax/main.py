"""Command line of the main job.

  python -m pdrec_jax.main --config=configs/toy.py [--workdir=DIR] [--config.FIELD=VALUE ...]
"""

import sys
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags

from pdrec_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run; runs/NAME-PROTOCOL-SEED where not given."
)

USAGE = 2  # exit status for what the user can mend


def _main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        _fail(f"unexpected argument {argv[1]!r}; fields are set as --config.FIELD=VALUE")
    if _CONFIG.value is None:
        _fail("--config: a config file is expected, for instance --config=configs/toy.py")
    try:
        # Imported here, so that a mistyped flag is answered at once.
        from pdrec_jax.experiment import run

        pristine = config_flags.get_config_filename(flags.FLAGS["config"])
        run(_CONFIG.value, _load(pristine), _WORKDIR.value)
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("interrupted; the same command resumes the run", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        from pdrec_jax.checkpoints import is_disk_full

        if not is_disk_full(error):
            raise
        _fail(f"disk full: {error}")


def _load(path: str):
    """Loads the config file again, to tell what the command line changed."""
    import importlib.util

    name, _, argument = path.partition(":")
    spec = importlib.util.spec_from_file_location("pristine_config", name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument) if argument else module.get_config()


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(USAGE)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses flags; what absl and ml_collections raise becomes one line."""
    try:
        return flags.FLAGS(list(argv))
    except (flags.Error, UserError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        _fail(str(error) or repr(error))
        raise


def main() -> None:
    """Runs the command line; exits with 2 and one line on a mistake of the user's."""
    app.run(_main, flags_parser=_parse)


if __name__ == "__main__":
    main()
