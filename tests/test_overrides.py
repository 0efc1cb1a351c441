"""Settings that a config has for a protocol, an encoder or the shortened run."""

from typing import Any

import pytest
from ml_collections import ConfigDict

from pdrec_jax.errors import UserError
from pdrec_jax.overrides import apply_overrides, apply_protocol, validate
from pdrec_jax.settings import FIELDS, default_config, differences, put


def config_with(**values: Any) -> ConfigDict:
    """The default config with some fields set, `.` written as `__`."""
    config = default_config()
    for name, value in values.items():
        put(config, name.replace("__", "."), value)
    return config


class TestOverrides:
    @pytest.fixture
    def config(self) -> ConfigDict:
        overrides = (("diffusion.epochs", 3), ("diffusion.hidden", [16]), ("seed", 7))
        config = config_with(simulation__overrides=overrides)
        config.lock()
        return config

    def test_they_apply(self, config: ConfigDict) -> None:
        short = apply_overrides(config, ())
        validate(short)
        assert (short.diffusion.epochs, short.diffusion.hidden, short.seed) == (3, (16,), 7)
        assert differences(short, config) == ["diffusion.epochs", "diffusion.hidden", "seed"]
        assert config.diffusion.epochs == FIELDS["diffusion.epochs"].default

    def test_what_was_set_by_hand_stays(self, config: ConfigDict) -> None:
        # By hand to the very value that the config file has, too.
        short = apply_overrides(config, {"diffusion.epochs", "encoder.epochs"})
        assert differences(short, config) == ["diffusion.hidden", "seed"]


@pytest.mark.parametrize(("protocol", "negatives"), [("strict", 4), ("reference", 1)])
def test_settings_for_strict(protocol: str, negatives: int) -> None:
    chosen = (("encoder.negatives", 4), ("nns.placement", "instead"))
    config = config_with(protocol=protocol, strict_overrides=chosen)
    for by_hand in ((), {"nns.placement"}):
        settled = apply_protocol(config, by_hand)
        validate(settled)
        instead = protocol == "strict" and not by_hand
        assert settled.encoder.negatives == negatives
        assert settled.nns.placement == ("instead" if instead else "beside")
    assert config.encoder.negatives == 1


def test_settings_for_reference() -> None:
    chosen = (("encoder.batch_repeat", 3),)
    for protocol, times in (("strict", 1), ("reference", 3)):
        config = config_with(protocol=protocol, reference_overrides=chosen)
        assert apply_protocol(config, ()).encoder.batch_repeat == times
        assert apply_protocol(config, {"encoder.batch_repeat"}).encoder.batch_repeat == 1


def test_settings_for_an_encoder() -> None:
    own = (("hbr.clip", 5.0), ("dpa.weight", 0.4))
    for name, weight in (("sasrec", 0.5), ("gru4rec", 0.4)):
        config = config_with(
            encoder__name=name, gru4rec_overrides=own, strict_overrides=(("hbr.clip", 2.0),)
        )
        config.dpa.weight = 0.5
        settled = apply_protocol(config, ())
        # The protocol's count for more.
        assert (settled.dpa.weight, settled.hbr.clip) == (weight, 2.0)
        assert apply_protocol(config, {"dpa.weight", "hbr.clip"}).to_dict() == config.to_dict()
        config.protocol = "reference"
        assert apply_protocol(config, ()).hbr.clip == (5.0 if name == "gru4rec" else 3.0)


def test_settings_for_an_encoder_are_not_those_of_the_sasrec_that_fills_preferences() -> None:
    own = (("dpa.weight", 0.4), ("encoder.learning_rate", 0.02))
    config = config_with(
        encoder__name="gru4rec", gru4rec_overrides=own, preferences_by="sasrec", stage="all"
    )
    with pytest.raises(UserError, match=r"^config\.gru4rec_overrides: encoder\.learning_rate "):
        apply_protocol(config, ())
    assert apply_protocol(config, {"encoder.learning_rate"}).dpa.weight == 0.4
    config.preferences_from = "runs/filled"
    assert apply_protocol(config, ()).encoder.learning_rate == 0.02


def test_settings_for_strict_count_where_fields_must_agree() -> None:
    chosen = (("encoder.negatives", 4),)
    config = config_with(strict_overrides=chosen, nns__placement="instead")
    validate(apply_protocol(config, {"nns.placement"}))
    with pytest.raises(UserError, match=r"above nns\.drawn"):
        validate(config)
    with pytest.raises(UserError, match=r"above nns\.drawn"):
        validate(apply_protocol(config, {"nns.placement", "encoder.negatives"}))
    config.encoder.variants = ("base", "hbr")  # no safe negatives are drawn
    validate(config)
    with pytest.raises(UserError, match="an integer of at least 1 and at most 1000 is"):
        apply_protocol(config_with(strict_overrides=(("encoder.negatives", "x"),)), ())
