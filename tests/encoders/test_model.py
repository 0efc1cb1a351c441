"""A step on packed rows against the public code's numbers, and against left-padded rows."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pdrec_jax.data.negatives import complement_table
from pdrec_jax.encoders.model import (
    EncoderModel,
    TrainingData,
    final_states,
    score_all,
    score_items,
    training_loss,
    training_rows,
)

CLOSE = {"rtol": 0, "atol": 1e-4}
PREFIX = "sasrec_embedding_source."
ALL = ("hbr", "nns", "dpa")


