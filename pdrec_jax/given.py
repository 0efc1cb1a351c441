"""What the phases of a run are given: the log, split, and the candidates of every user."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pdrec_jax.data import sources
from pdrec_jax.data.interactions import Interactions
from pdrec_jax.data.splits import MIN_EVENTS, Split, leave_one_out, with_source_events
from pdrec_jax.diffusion.preferences import PoolRules, require_room
from pdrec_jax.errors import UserError
from pdrec_jax.evaluation import protocol as protocols
from pdrec_jax.sharding import make_mesh


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """What the phases of a run have in common.

    Attributes:
      config: resolved.
      protocol: named in the config.
      split: the data.
      users: who takes part where.
      candidates: of the test item, [U, 1 + N]; drawn when asked for where the log is mapped.
      validation: of the validation item, likewise; the test's where the test chooses the epoch.
    """

    config: ConfigDict
    protocol: protocols.Protocol
    split: Split
    users: protocols.UserSets
    candidates: protocols.Candidates
    validation: protocols.Candidates

    @property
    def mesh(self) -> Mesh | None:
        """The devices of the run, None for one."""
        data, model = self.config.mesh
        return make_mesh((data, model))

    @property
    def save_behind(self) -> bool:
        """Whether a stage's state is saved in the background while it trains.

        On processors that takes the cores and the memory that training needs.
        """
        choice = self.config.save_async
        return choice == "on" or (choice == "auto" and jax.default_backend() != "cpu")


# What the phases need, and what the results say of the data.
Prepared = tuple[Given, dict[str, Any]]


def prepare(config: ConfigDict, files: list[Path] | None) -> Prepared:
    """Loads or simulates the log, splits it and draws the candidates.

    Everything that the data can have against the config is found here, before a run begins.

    Args:
      config: resolved.
      files: from ``sources.find_files``.

    Returns:
      what the phases need, and what the results say of the data.

    Raises:
      UserError: a bad file, or data that the config asks too much of.
    """
    log, source = sources.load(config, files)
    protocol = protocols.protocol_of(config)
    if config.data.mixed and log.domains is None:
        raise UserError(
            "config.data.mixed: a log of two domains is expected; name the other one with "
            "config.data.auxiliary"
        )
    try:
        split = split_of(config, log, protocol)
    except UserError as error:
        raise UserError(f"{files[0] if files else 'simulated log'}: {error}") from error
    users = protocols.user_sets(protocol, split)
    for name in ("diffusion", "preferences", "encoder"):
        if not getattr(users, name).any():
            raise UserError(
                f"data: no user passes the {protocol.name} protocol's filter of the {name} stage, "
                "at least one with four events or more is expected"
            )
    data_axis, model_axis = config.mesh
    make_mesh((data_axis, model_axis))  # one that does not fit is refused here
    if config.stage != "encoder" or set(config.encoder.variants) != {"base"}:
        if files is not None:
            sources.require_times(config)
        require_room(
            split,
            users.preferences,
            pool_rules(config, protocol),
            exclude_heldout=protocol.nns_excludes_heldout,
        )
    lengths = log.lengths if config.data.mixed else log.target_lengths
    data = {
        **source,
        "users": split.train.num_users,
        "items": split.train.num_items,
        # Of all users that are kept, whatever the protocol trains on.
        "events": int(lengths[log.target_lengths >= MIN_EVENTS].sum()),
        "dropped_users": split.dropped_users,
    }
    return _given(config, protocol, split, users), data


def split_of(config: ConfigDict, log: Interactions, protocol: protocols.Protocol) -> Split:
    """Splits a log as the task of a config has it: of one domain, or of two.

    Raises:
      UserError: a log of one domain where two are asked for, or too few users with enough events.
    """
    if not config.data.mixed:
        return leave_one_out(log)
    return with_source_events(
        log, between=protocol.trains_between, learns_source=config.data.learns_source
    )


def _given(
    config: ConfigDict,
    protocol: protocols.Protocol,
    split: Split,
    users: protocols.UserSets,
) -> Given:
    def draw(heldout: str) -> protocols.Candidates:
        negatives = config.evaluation.negatives
        if split.train.mapped:
            drawn = protocols.DrawnCandidates(protocol, split, config.seed, heldout, negatives)
            drawn.require_items()
            drawn.require_room()
            return drawn
        return protocols.draw_candidates(
            protocol, split, config.seed, heldout=heldout, negatives=negatives
        )

    test = draw("test")
    validation = test if protocol.select_on_test else draw("valid")
    return Given(config, protocol, split, users, test, validation)


def with_seed(given: Given, config: ConfigDict) -> Given:
    """Returns what the phases of another seed are given: the same data, other candidates.

    Args:
      given: of any seed.
      config: of the seed.
    """
    return _given(config, given.protocol, given.split, given.users)


def pool_rules(config: ConfigDict, protocol: protocols.Protocol) -> PoolRules:
    """The pools that a config and a protocol ask for."""
    return PoolRules(
        candidates=config.dpa.coarse,
        candidates_unobserved=protocol.dpa_unobserved,
        negatives=config.nns.kept,
        first_fraction=config.nns.first_fraction,
        last_fraction=protocol.nns_last_fraction,
        ranks_among_all=protocol.nns_excludes_heldout,
        whole_pools=config.nns.refresh_epochs > 0,
    )
