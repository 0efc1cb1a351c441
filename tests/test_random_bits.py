"""Random words: uniform, unbiased, uncorrelated, and a function of key and index alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax import random_bits
from pdrec_jax.diffusion.process import normal_from_bits
from pdrec_jax.random_bits import hashed_bits, hashed_bits_at, hashed_bits_of

N = 1 << 18
jit_bits = jax.jit(hashed_bits, static_argnums=1)


@functools.cache
def words(seed: int) -> np.ndarray:
    return np.asarray(jit_bits(jax.random.key(seed), (N,)))


def uniform(seed: int) -> np.ndarray:
    return (words(seed).astype(np.float64) + 0.5) / 2**32


def kolmogorov_smirnov(sorted_probabilities: np.ndarray) -> float:
    """Largest distance to the uniform distribution, times sqrt(N): 2.5 once in 130,000."""
    n = len(sorted_probabilities)
    steps = np.arange(n + 1) / n
    above = np.abs(sorted_probabilities - steps[:-1]).max()
    return max(above, np.abs(sorted_probabilities - steps[1:]).max()) * n**0.5


SEEDS = (0, 12345)


@pytest.mark.parametrize("seed", SEEDS)
class TestOneStream:
    def test_type(self, seed):
        assert words(seed).dtype == np.uint32

    def test_moments(self, seed):
        """Mean, variance, skewness and kurtosis of the normals, within five standard errors."""
        z = np.asarray(normal_from_bits(jnp.asarray(words(seed))), np.float64)
        for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            assert abs((z**power).mean() - moment) < 5 * (variance / N) ** 0.5

    def test_distribution(self, seed):
        assert kolmogorov_smirnov(np.sort(uniform(seed))) < 2.5

    def test_every_bit_is_fair(self, seed):
        ones = np.array([(words(seed) >> bit & 1).mean() for bit in range(32)])
        assert np.abs(ones - 0.5).max() < 5 * 0.5 / N**0.5

    def test_pairs_of_bits_are_independent(self, seed):
        """Dropout reads the low bits of the words whose high bits make the noise."""
        signs = np.stack([(words(seed) >> bit & 1) for bit in range(32)]).astype(np.float32) * 2 - 1
        correlation = signs @ signs.T / N - np.eye(32)
        assert np.abs(correlation).max() < 5.5 / N**0.5

    def test_serial_correlation(self, seed):
        centred = uniform(seed) - 0.5
        for lag in (1, 2, 3, 64, 1000, 37868):
            correlation = (centred[:-lag] * centred[lag:]).mean() * 12
            assert abs(correlation) < 5 / (N - lag) ** 0.5

    def test_neighbours_fill_the_square(self, seed):
        """Chi-square of pairs of neighbours over 64 x 64 cells: five standard deviations."""
        cells = (words(seed) >> 26).reshape(-1, 2).astype(np.int64)
        counts = np.bincount(cells[:, 0] * 64 + cells[:, 1], minlength=4096)
        expected = N / 2 / 4096
        chi_square = np.sum((counts - expected) ** 2) / expected
        assert abs(chi_square - 4095) < 5 * (2 * 4095) ** 0.5

    def test_no_word_twice_more_often_than_by_chance(self, seed):
        repeats = N - len(np.unique(words(seed)))
        expected = N * (N - 1) / 2 / 2**32
        assert repeats < expected + 5 * expected**0.5 + 1


class TestStreams:
    def test_other_keys_are_independent(self):
        streams = np.stack([uniform(seed) - 0.5 for seed in SEEDS])
        base = jax.random.key(0)
        folded = [jit_bits(jax.random.fold_in(base, step), (N,)) for step in range(4)]
        streams = np.concatenate([streams, np.stack(folded) / 2**32 - 0.5])
        correlation = streams @ streams.T * 12 / N - np.eye(len(streams))
        assert np.abs(correlation).max() < 6 / N**0.5
        signs = np.stack([np.asarray(f) for f in folded])
        for bit in range(0, 32, 5):
            flips = (signs[0] ^ signs[1]) >> bit & 1
            assert abs(flips.mean() - 0.5) < 5 * 0.5 / N**0.5

    def test_a_key_that_differs_in_one_bit(self):
        """Half of all bits change, whichever of the two words of the key differs."""
        data = np.array([5, 9], np.uint32)
        base = words_of(data)
        for word, bit in ((0, 0), (0, 31), (1, 0), (1, 31)):
            other = data.copy()
            other[word] ^= np.uint32(1 << bit)
            flips = np.unpackbits((base ^ words_of(other)).view(np.uint8)).mean()
            assert flips == pytest.approx(0.5, abs=0.002)

    def test_shape_does_not_matter(self):
        flat = np.asarray(hashed_bits(jax.random.key(3), (24,)))
        np.testing.assert_array_equal(hashed_bits(jax.random.key(3), (4, 6)).ravel(), flat)
        np.testing.assert_array_equal(hashed_bits(jax.random.key(3), (5,)), flat[:5])

    def test_more_words_than_a_counter_of_one_word_has(self, monkeypatch):
        """A table of so many is cut into rows, which the counter goes on through all the same."""
        key = jax.random.key(3)
        expected = hashed_bits(key, (2, 4, 6))
        monkeypatch.setattr(random_bits, "_WORDS", 40)
        np.testing.assert_array_equal(hashed_bits(key, (2, 4, 6)), expected)

    def test_beyond_the_counter_other_words_come(self):
        """Row 3 begins 2^32 words after row 0."""
        key, width, columns = jax.random.key(3), 2**32 // 3 + 1, jnp.arange(8)
        rows = jnp.array([0, 3])
        both = hashed_bits_at(key, rows, columns, width)
        begin = 3 * width - 2**32
        again = hashed_bits_at(key, rows[:1], begin + columns, width)
        assert not (both[1] == again[0]).any()
        some = hashed_bits_of(key, jnp.repeat(rows, 8), jnp.tile(columns, 2), width)
        np.testing.assert_array_equal(some.reshape(2, 8), both)

    def test_known_words(self):
        """The formula, in Python's integers; a change of it changes every training run."""

        def mix(word: int) -> int:
            word = (word ^ word >> 16) * 0x7FEB352D % 2**32
            word = (word ^ word >> 15) * 0x846CA68B % 2**32
            return word ^ word >> 16

        first, second = 0xDEADBEEF, 0xFFFFFFFE
        expected = [mix(mix((i + first) % 2**32) ^ second) for i in range(100)]
        found = words_of(np.array([first, second], np.uint32), 100)
        np.testing.assert_array_equal(found, np.array(expected, np.uint32))


def words_of(data: np.ndarray, count: int = 1 << 16) -> np.ndarray:
    key = jax.random.wrap_key_data(jnp.asarray(data))
    return np.asarray(jit_bits(key, (count,)))
