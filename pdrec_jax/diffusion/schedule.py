"""Noise schedules and everything that follows from them, in float64 on the host.

The noise of recommendation data is tiny (Toy: a variance of 1e-5 at the first step and 5.5e-5 at
the last), so ``1 - alpha_bar`` would lose most of its digits in float32. All derived quantities are
therefore computed here once in float64 and cast where they are used.

Sources: DDPM (Ho et al., 2020), Eq. 4-7; DiffRec (Wang et al., 2023) for the linear-variance
schedule; Sohl-Dickstein et al. (2015), Sec. 2.4.1, for the fixed first beta and the binomial one.
"""

import dataclasses
import math

import numpy as np

from pdrec_jax.errors import UserError

SCHEDULES = ("linear", "linear-var", "cosine", "binomial")
TARGETS = ("x0", "epsilon")
MAX_BETA = 0.999
FIRST_BETA = 1e-5


def _from_alpha_bars(alpha_bars: np.ndarray) -> np.ndarray:
    """Returns the betas [T] whose cumulative products of 1 - beta are ``alpha_bars`` [T]."""
    previous = np.concatenate([[1.0], alpha_bars[:-1]])
    with np.errstate(divide="ignore", invalid="ignore"):  # a variance of 1 before the last step
        betas = 1 - alpha_bars / previous
    # The first beta is the variance itself; only later ones can run into the singularity at 1.
    return np.concatenate([betas[:1], np.minimum(betas[1:], MAX_BETA)])


def make_betas(
    name: str, steps: int, noise_scale: float, noise_min: float, noise_max: float
) -> np.ndarray:
    """Returns the variances beta_t of one forward step, [T] float64, as the formulas give them.

    Args:
      name: ``linear`` (beta itself is linear), ``linear-var`` (1 - alpha_bar is linear), ``cosine``
        (Nichol and Dhariwal, 2021) or ``binomial`` (1 / (T - t + 1)).
      steps: T.
      noise_scale: factor on both ends of the two linear schedules.
      noise_min: lower end of the two linear schedules.
      noise_max: upper end of the two linear schedules.

    Raises:
      UserError: an unknown name.
    """
    if name in ("linear", "linear-var"):
        line = np.linspace(noise_scale * noise_min, noise_scale * noise_max, steps)
        betas = line if name == "linear" else _from_alpha_bars(1 - line)
    elif name == "cosine":

        def alpha_bar(time: float) -> float:
            return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

        edges = np.array([alpha_bar(t / steps) for t in range(steps + 1)])
        betas = np.minimum(1 - edges[1:] / edges[:-1], MAX_BETA)
    elif name == "binomial":
        betas = 1.0 / (steps - np.arange(steps) + 1)
    else:
        raise UserError(f"diffusion.schedule: expected one of {SCHEDULES}, got {name!r}")
    return betas.astype(np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """A noise schedule; every array is [T] float64, index 0 the step nearest to the data.

    ``noise_free`` marks ``noise_scale = 0``: nothing is added in training and inference applies
    the denoiser T times in a row.
    """

    betas: np.ndarray
    noise_free: bool = False

    def __eq__(self, other: object) -> bool:
        # By value, as a static argument of what is compiled once for all seeds of a run.
        return isinstance(other, Schedule) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    @property
    def _value(self) -> tuple[bytes, bool]:
        return self.betas.tobytes(), self.noise_free

    @property
    def steps(self) -> int:
        """T."""
        return len(self.betas)

    @property
    def alpha_bars(self) -> np.ndarray:
        """Share of the signal's variance that is left after step t."""
        return np.cumprod(1 - self.betas)

    @property
    def alpha_bars_previous(self) -> np.ndarray:
        """The same one step before; 1 at t = 0."""
        return np.concatenate([[1.0], self.alpha_bars[:-1]])

    @property
    def signal_scale(self) -> np.ndarray:
        """Factor of x_0 in q(x_t | x_0)."""
        return np.sqrt(self.alpha_bars)

    @property
    def noise_scale(self) -> np.ndarray:
        """Standard deviation of the noise in q(x_t | x_0)."""
        return np.sqrt(1 - self.alpha_bars)

    @property
    def snr(self) -> np.ndarray:
        """Signal-to-noise ratio alpha_bar / (1 - alpha_bar); infinite where there is no noise."""
        if self.noise_free:
            return np.full(self.steps, np.inf)
        return self.alpha_bars / (1 - self.alpha_bars)

    @property
    def posterior_variance(self) -> np.ndarray:
        """Variance of q(x_{t-1} | x_t, x_0); 0 at t = 0."""
        if self.noise_free:
            return np.zeros(self.steps)
        return self.betas * (1 - self.alpha_bars_previous) / (1 - self.alpha_bars)

    @property
    def posterior_log_variance(self) -> np.ndarray:
        """Its logarithm; t = 0 takes the value of t = 1, where the variance is not 0."""
        variance = self.posterior_variance
        if self.steps > 1:
            variance = np.concatenate([variance[1:2], variance[1:]])
        with np.errstate(divide="ignore"):
            return np.log(variance)

    @property
    def posterior_x0(self) -> np.ndarray:
        """Coefficient of x_0 in the mean of q(x_{t-1} | x_t, x_0)."""
        if self.noise_free:
            return np.ones(self.steps)
        return _ratio(self.betas * np.sqrt(self.alpha_bars_previous), 1 - self.alpha_bars)

    @property
    def posterior_xt(self) -> np.ndarray:
        """Coefficient of x_t in the mean of q(x_{t-1} | x_t, x_0)."""
        if self.noise_free:
            return np.zeros(self.steps)
        left = (1 - self.alpha_bars_previous) * np.sqrt(1 - self.betas)
        return _ratio(left, 1 - self.alpha_bars)

    @property
    def x0_from_xt(self) -> np.ndarray:
        """Coefficient of x_t where x_0 is recovered from x_t and the noise."""
        return np.sqrt(_ratio(1, self.alpha_bars))

    @property
    def x0_from_noise(self) -> np.ndarray:
        """Coefficient (to be subtracted) of the noise in the same."""
        return np.sqrt(_ratio(1, self.alpha_bars) - 1)

    def loss_weights(self, target: str) -> np.ndarray:
        """Weight of the squared error of each timestep, [T] float64.

        x0: ``SNR(t-1) - SNR(t)``. epsilon: ``(1 - ab_t) / ((1 - ab_{t-1})^2 (1 - beta_t))``. Both
        are 1 at t = 0, and everywhere in a noise-free schedule (DiffRec, 2023, Eq. 14-16).
        """
        weights = np.ones(self.steps)
        if self.noise_free:
            return weights
        if target == "x0":
            weights[1:] = self.snr[:-1] - self.snr[1:]
        elif target == "epsilon":
            variance, previous = 1 - self.alpha_bars, 1 - self.alpha_bars_previous
            weights[1:] = variance[1:] / (previous[1:] ** 2 * (1 - self.betas[1:]))
        else:
            raise UserError(f"diffusion.target: expected one of {TARGETS}, got {target!r}")
        return weights

    def affine(self, target: str) -> tuple[np.ndarray, np.ndarray]:
        """One noise-free reverse step as ``x <- a_t f(x, t) + c_t x`` (docs/design.md).

        Returns:
          a [T] and c [T], float64. With ``target='x0'`` the last step (t = 0) has a = 1 and c = 0.
        """
        if self.noise_free:
            return np.ones(self.steps), np.zeros(self.steps)
        if target == "x0":
            return self.posterior_x0, self.posterior_xt
        if target == "epsilon":
            a = -self.posterior_x0 * self.x0_from_noise
            return a, self.posterior_x0 * self.x0_from_xt + self.posterior_xt
        raise UserError(f"diffusion.target: expected one of {TARGETS}, got {target!r}")


def _ratio(left: np.ndarray | int, right: np.ndarray) -> np.ndarray:
    """A quotient; where nothing of the data is left it is infinite, and unread with target x0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return left / right


def make_schedule(
    name: str,
    steps: int,
    *,
    noise_scale: float,
    noise_min: float,
    noise_max: float,
    fix_first_beta: bool = True,
) -> Schedule:
    """Builds a schedule; see ``make_betas`` for the arguments.

    Args:
      name: one of ``SCHEDULES``.
      steps: T >= 1.
      noise_scale: 0 gives a noise-free schedule.
      noise_min: see ``make_betas``.
      noise_max: see ``make_betas``.
      fix_first_beta: set beta_0 to 1e-5, which keeps the step nearest to the data from overfitting
        (Sohl-Dickstein et al., 2015, Sec. 2.4.1).

    Raises:
      UserError: an unknown name, or a beta outside (0, 1].
    """
    if name not in SCHEDULES:
        raise UserError(f"diffusion.schedule: expected one of {SCHEDULES}, got {name!r}")
    if noise_scale == 0:
        return Schedule(np.zeros(steps), noise_free=True)
    betas = make_betas(name, steps, noise_scale, noise_min, noise_max)
    if fix_first_beta:
        betas[0] = FIRST_BETA
    # Later betas of linear-var are kept below 1, whatever their variances are.
    beyond = name == "linear-var" and steps > 1 and noise_scale * noise_max > 1
    if beyond or not ((betas > 0) & (betas <= 1)).all():
        what = "variances that rise from above 0 to" if name == "linear-var" else "above 0 and"
        raise UserError(
            f"config.diffusion.noise_min, noise_max: the {name} schedule leaves (0, 1] in {steps} "
            f"steps; {what} at most 1 is expected, got {noise_min:g} to {noise_max:g} at "
            f"noise_scale {noise_scale:g}"
        )
    return Schedule(betas)
