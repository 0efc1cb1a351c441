"""What must hold between the fields of a config."""

from ml_collections import ConfigDict

from pdrec_jax.errors import UserError

MAX_SEED = 2**31 - 1
# Of a row's weight in a step; `row_adam.tails` diverges from about 0.0996 on.
_MOST_DECAY = 0.05


def require_consistent(config: ConfigDict) -> None:
    """Checks what must hold between fields, each of which fits by itself.

    Args:
      config: as its protocol has it.

    Raises:
      UserError: the first that does not.
    """
    diffusion, encoder, data = config.diffusion, config.encoder, config.data
    if diffusion.w_min > diffusion.w_max:
        raise UserError(
            f"config.diffusion.w_min: at most w_max ({diffusion.w_max:g}) is expected, "
            f"got {diffusion.w_min:g}"
        )
    if diffusion.noise_min > diffusion.noise_max:
        raise UserError(
            f"config.diffusion.noise_min: at most noise_max ({diffusion.noise_max:g}) is expected, "
            f"got {diffusion.noise_min:g}"
        )
    if diffusion.sampling_steps > diffusion.steps:
        raise UserError(
            f"config.diffusion.sampling_steps: at most steps ({diffusion.steps}) is expected, "
            f"got {diffusion.sampling_steps}"
        )
    if diffusion.target == "epsilon" and diffusion.noise_scale == 0:
        raise UserError(
            "config.diffusion.noise_scale: above 0 is expected with target 'epsilon', for without "
            "noise there is none to predict, got 0"
        )
    for name in ("noise_fraction", "error_fraction"):
        if diffusion[name] < 1 and (diffusion.target != "x0" or diffusion.normalise):
            raise UserError(
                f"config.diffusion.{name}: 1 is expected with target 'epsilon' or normalise, "
                f"got {diffusion[name]:g}"
            )
        if 0.5 < diffusion[name] < 1:
            raise UserError(
                f"config.diffusion.{name}: 1, or 0.5 at most, is expected, for the slots are split "
                f"into windows of equal size; got {diffusion[name]:g}"
            )
    decay = diffusion.learning_rate * diffusion.weight_decay
    if diffusion.error_fraction < 1 and decay > _MOST_DECAY:
        raise UserError(
            "config.diffusion.weight_decay: learning_rate times weight_decay of at most "
            f"{_MOST_DECAY} is expected with error_fraction below 1, where rows catch up with "
            f"steps that they took no part in, got {decay:g}"
        )
    if not data.learns_source and not data.mixed:
        raise UserError(
            "config.data.learns_source: True is expected without data.mixed, where no source item "
            "is learnt, got False"
        )
    if not data.learns_source and encoder.history_weight:
        raise UserError(
            "config.encoder.history_weight: 0 is expected with data.learns_source=False, for a "
            f"history has source items too, got {encoder.history_weight:g}"
        )
    if diffusion.source_slots and data.mixed:
        raise UserError(
            "config.diffusion.source_slots: False is expected with data.mixed, where the source "
            "items have slots already, got True"
        )
    if not config.dpa.drawn and config.dpa.fine > config.dpa.coarse:
        raise UserError(
            f"config.dpa.fine: at most dpa.coarse ({config.dpa.coarse}) is expected, "
            f"got {config.dpa.fine}"
        )
    if not config.dpa.drawn and config.dpa.draw_by != "uniform":
        raise UserError(
            "config.dpa.draw_by: 'uniform' is expected with dpa.drawn=0, where nothing is drawn, "
            f"got {config.dpa.draw_by!r}"
        )
    attends = encoder.name != "gru4rec" or config.preferences_by == "sasrec"
    if attends and encoder.width % encoder.heads:
        raise UserError(
            f"config.encoder.heads: a divisor of the width ({encoder.width}) is expected, "
            f"got {encoder.heads}"
        )
    if config.seed + config.seeds - 1 > MAX_SEED:
        raise UserError(
            f"config.seeds: seeds of at most {MAX_SEED} are expected, and {config.seeds} of them "
            f"from {config.seed} are more"
        )
    if config.preferences_from and config.stage != "encoder":
        raise UserError(
            "config.preferences_from: only the encoder stage reads preferences of another run; "
            f"add --config.stage=encoder, got {config.stage!r}"
        )
    if config.diffusion_from and config.stage == "encoder":
        raise UserError(
            "config.diffusion_from: the encoder stage alone reads preferences, name them with "
            "config.preferences_from; all or diffusion is expected of config.stage, got 'encoder'"
        )
    if config.preferences_by == "sasrec":
        none = "for preferences_by='sasrec' trains no diffusion model"
        if config.diffusion_from:
            raise UserError(
                f"config.diffusion_from: none is expected, {none}, got {config.diffusion_from!r}"
            )
        if diffusion.both:
            raise UserError(f"config.diffusion.both: False is expected, {none}, got True")
    draws = any("nns" in variant.split("+") for variant in encoder.variants)
    if draws and config.nns.placement == "instead" and config.nns.drawn >= encoder.negatives:
        raise UserError(
            "config.nns.placement: 'instead' expects encoder.negatives above nns.drawn "
            f"({config.nns.drawn}), got {encoder.negatives}"
        )
