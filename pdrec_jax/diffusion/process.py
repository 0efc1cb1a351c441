"""The forward process, its posterior and the training loss: pure functions of arrays.

``Coefficients`` is a schedule cast to the device's float type, [T] each. Timesteps ``t`` are int32
in [0, T). Vectors are [B, I] over the slots (items) of the interaction vector.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from pdrec_jax.diffusion.schedule import Schedule


class Coefficients(NamedTuple):
    """What training and inference need of a schedule, [T] each."""

    signal_scale: Array
    noise_scale: Array
    posterior_x0: Array
    posterior_xt: Array
    posterior_variance: Array
    posterior_log_variance: Array
    x0_from_xt: Array
    x0_from_noise: Array
    loss_weight: Array


def coefficients(
    schedule: Schedule, target: str, *, reweight: bool = True, dtype: DTypeLike = jnp.float32
) -> Coefficients:
    """Casts a schedule for the device.

    Args:
      schedule: float64 on the host.
      target: ``x0`` or ``epsilon``, what the denoiser predicts.
      reweight: weight timesteps by their signal-to-noise ratio; otherwise every weight is 1.
      dtype: of the result.
    """
    weight = schedule.loss_weights(target)
    fields = {
        "signal_scale": schedule.signal_scale,
        "noise_scale": schedule.noise_scale,
        "posterior_x0": schedule.posterior_x0,
        "posterior_xt": schedule.posterior_xt,
        "posterior_variance": schedule.posterior_variance,
        "posterior_log_variance": schedule.posterior_log_variance,
        "x0_from_xt": schedule.x0_from_xt,
        "x0_from_noise": schedule.x0_from_noise,
        "loss_weight": weight if reweight else weight * 0 + 1,
    }
    return Coefficients(**{name: jnp.asarray(value, dtype) for name, value in fields.items()})


def _at(values: Array, t: Array) -> Array:
    """Takes the coefficient of each row's timestep, as a column [B, 1]."""
    return values[t][:, None]


def q_sample(c: Coefficients, x_0: Array, t: Array, noise: Array) -> Array:
    """Draws x_t ~ q(x_t | x_0) with the given standard normal noise (DDPM, 2020, Eq. 4).

    Args:
      c: the schedule.
      x_0: [B, I].
      t: [B] int32.
      noise: [B, I].
    """
    return _at(c.signal_scale, t) * x_0 + _at(c.noise_scale, t) * noise


def predict_x0(c: Coefficients, x_t: Array, t: Array, noise: Array) -> Array:
    """Recovers x_0 from x_t and the noise in it; the inverse of ``q_sample``."""
    return _at(c.x0_from_xt, t) * x_t - _at(c.x0_from_noise, t) * noise


def posterior_mean(c: Coefficients, x_0: Array, x_t: Array, t: Array) -> Array:
    """Mean of q(x_{t-1} | x_t, x_0), [B, I] (DDPM, 2020, Eq. 7)."""
    return _at(c.posterior_x0, t) * x_0 + _at(c.posterior_xt, t) * x_t


def denoising_loss(
    c: Coefficients, target: str, output: Array, x_0: Array, x_t: Array, noise: Array, t: Array
) -> Array:
    """Weighted squared error of each row, before division by the timestep's probability.

    For ``x0`` it is ``w_t mean_i (x_0 - f)^2``; for ``epsilon`` ``w_t mean_i (noise - f)^2``,
    except at t = 0 where it is the likelihood ``mean_i (x_0 - x_0(f))^2 / 2``.

    Args:
      c: the schedule.
      target: ``x0`` or ``epsilon``.
      output: f(x_t, t), [B, I].
      x_0: [B, I].
      x_t: [B, I].
      noise: [B, I].
      t: [B] int32.

    Returns:
      [B] losses.
    """
    if target == "x0":
        error = jnp.mean(jnp.square(x_0 - output), axis=-1)
    else:
        likelihood = jnp.mean(jnp.square(x_0 - predict_x0(c, x_t, t, output)) / 2, axis=-1)
        error = jnp.mean(jnp.square(noise - output), axis=-1)
        error = jnp.where(t == 0, likelihood, error)
    return c.loss_weight[t] * error


# erfinv(u) sqrt(2) / u as a polynomial of sqrt(4 - log(1 - u^2)) - 3, and log(1 + x) / x for 1 + x
# in [sqrt(1/2), sqrt(2)): least-squares fits in Chebyshev's basis. Lowest power first.
_NORMAL = (
    2.9413052, 1.8133708, -0.067822106, -0.08396855, 0.10777166, -0.044987671, -0.019829221,
    0.027574796, -0.0038017032, -0.0056719407, 0.0020084917,
)  # fmt: skip
_LOG = (
    0.99999994, -0.50000274, 0.33334491, -0.24974704, 0.19920732, -0.17208458, 0.16033597,
    -0.10006916,
)  # fmt: skip
_SQRT_HALF = 0x3F3504F3  # the word of the float sqrt(1/2)


def normal_from_bits(bits: Array) -> Array:
    """Maps uniform 32-bit words to standard normals by the inverse error function.

    The upper 23 bits are used, so the lowest ones are free for another draw (the dropout mask).
    The largest magnitude is about 5.3. The relative error is below 1e-5, at half the cost of
    ``jax.lax.erf_inv``, which keeps one polynomial for the tails and one for the rest.

    Args:
      bits: uint32.

    Returns:
      float32 of that shape.
    """
    mantissa = (bits >> 9).astype(jnp.int32).astype(jnp.float32)
    uniform = (mantissa + 0.5) * (2.0 / 2**23) - 1.0
    # Near 0 the logarithm's relative error is large; what counts here is the absolute one.
    word = jax.lax.bitcast_convert_type((1 - uniform) * (1 + uniform), jnp.int32) - _SQRT_HALF
    exponent = (word >> 23).astype(jnp.float32)
    fraction = jax.lax.bitcast_convert_type((word & 0x7FFFFF) + _SQRT_HALF, jnp.float32) - 1
    logarithm = fraction * _polynomial(_LOG, fraction) + exponent * math.log(2)
    return uniform * _polynomial(_NORMAL, jnp.sqrt(4 - logarithm) - 3)


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    result = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = result * x + coefficient
    return result
