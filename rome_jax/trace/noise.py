"""Noise for the corrupted runs: it disturbs the subject's token embeddings until the model loses the fact.

A `Noise` is a distribution over embeddings. A draw with a PRNG key gives [samples, tokens, width]. `parse_noise` reads
noise levels as the original writes them:

    s3      Gaussian, with 3 times the standard deviation of the subjects' token embeddings (as in the paper)
    0.1     Gaussian, with standard deviation 0.1
    u0.1    uniform between −0.1 and 0.1
    t3      Student's t with 3 degrees of freedom, with the covariance of the token embeddings of a text
    m       multivariate Gaussian, with the mean and the covariance of the token embeddings of a text

Axes: S samples, n tokens, D width.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.data.tokenization import bare_ids
from rome_jax.files.checked import Count, NonNegativeFloat, check, check_fields, shown
from rome_jax.models.precision import MatmulPrecision, product
from rome_jax.models.registry import LanguageModel

_LARGEST = float(np.finfo(np.float32).max)


class Distribution(enum.StrEnum):
    """Families of noise."""

    GAUSSIAN = "gaussian"
    UNIFORM = "uniform"
    STUDENT_T = "student_t"
    MULTIVARIATE = "multivariate"


@dataclasses.dataclass(frozen=True)
class NoiseLevel:
    """A noise level such as "s3", before it is fitted to a model.

    Attributes:
      distribution: Family of the noise.
      value: Standard deviation, half width or degrees of freedom; 0 for MULTIVARIATE.
      relative: Whether `value` is a multiple of the standard deviation of the subjects' embeddings.

    Raises:
      ValueError: If a value has another type or is out of range.
    """

    distribution: Distribution
    value: NonNegativeFloat
    relative: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def needs_texts(self) -> bool:
        """Whether the level is fitted to the embeddings of running text."""
        return self.distribution in (Distribution.STUDENT_T, Distribution.MULTIVARIATE)


def parse_noise(text: str) -> NoiseLevel:
    """Reads a noise level as the original writes it.

    Args:
      text: One of the forms listed at the top of this module, with any positive number.

    Returns:
      The level.

    Raises:
      ValueError: If the text has another form, or its number is not positive or not a float32; for t, not above 2.

    Example:
      >>> parse_noise("s3")
      NoiseLevel(distribution=<Distribution.GAUSSIAN: 'gaussian'>, value=3.0, relative=True)
    """
    text = check(str, text, "noise_level")
    match = re.fullmatch(r"([sut]?)(\d+\.?\d*(?:e-?\d+)?|\.\d+)|(m)", text.strip())
    value = float(match[2]) if match and match[2] else 0.0
    student = match and match[1] == "t"
    least = 2.0 if student else 0.0
    if match is None or not (match[3] or least < value <= _LARGEST):
        raise ValueError(
            f"noise_level={shown(text)} is not a noise level: give s3 (3 times the standard deviation of the subjects' "
            "embeddings), 0.1 (Gaussian), u0.1 (uniform), t3 (Student's t, more than 2 degrees of freedom) or m "
            "(multivariate Gaussian)."
        )
    if match[3]:
        return NoiseLevel(Distribution.MULTIVARIATE, 0.0)
    families = {"u": Distribution.UNIFORM, "t": Distribution.STUDENT_T}
    return NoiseLevel(families.get(match[1], Distribution.GAUSSIAN), value, match[1] == "s")


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """A distribution of noise vectors.

    Attributes:
      distribution: Family of the noise.
      value: Standard deviation, half width or degrees of freedom; 0 for MULTIVARIATE.
      mean: [D] mean; only for MULTIVARIATE and STUDENT_T, which does not use it.
      root: [D, D] symmetric square root of the covariance; only for MULTIVARIATE and STUDENT_T.

    Raises:
      ValueError: If `distribution` or `value` has another type or is out of range.
    """

    distribution: Distribution
    value: NonNegativeFloat
    mean: np.ndarray | None = None
    root: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_fields(self, ["distribution", "value"])

    def draw(
        self,
        key: jax.Array,
        samples: int,
        tokens: int,
        width: int,
        precision: MatmulPrecision = jax.lax.Precision.HIGHEST,
    ) -> jax.Array:
        """Draws independent noise vectors.

        Args:
          key: PRNG key.
          samples: S.
          tokens: n, tokens of the subject.
          width: D, width of the model.
          precision: Precision of the product with the root of the covariance, such as `model.config.precision`.

        Returns:
          float32 [S, n, D].

        Raises:
          ValueError: If one of the three is not a whole number of at least 1.

        Example:
          >>> Noise(Distribution.UNIFORM, 0.1).draw(jax.random.key(0), 10, 4, 768).shape
          (10, 4, 768)
        """
        sizes = {"samples": samples, "tokens": tokens, "width": width}
        shape = tuple(check(Count, size, name) for name, size in sizes.items())
        if self.distribution is Distribution.UNIFORM:
            return jax.random.uniform(key, shape, minval=-self.value, maxval=self.value)
        if self.distribution is Distribution.GAUSSIAN:
            return self.value * jax.random.normal(key, shape)
        normal, other = jax.random.split(key)
        root = jnp.asarray(self.root, jnp.float32)
        vectors = product(jnp.matmul, jax.random.normal(normal, shape), root, precision)
        if self.distribution is Distribution.MULTIVARIATE:
            return vectors + jnp.asarray(self.mean, jnp.float32)
        # A normal vector divided by √(χ²/ν) has Student's t distribution. The scale makes its covariance that of the
        # embeddings.
        chi_square = 2 * jax.random.gamma(other, self.value / 2, shape[:2])
        return vectors * jnp.sqrt((self.value - 2) / chi_square)[..., None]


def fit_noise(
    model: LanguageModel,
    level: NoiseLevel,
    *,
    subjects: Sequence[str] = (),
    texts: Iterable[str] = (),
) -> Noise:
    """Fits a noise level to the embeddings of a model.

    Args:
      model: Model whose token embeddings are measured.
      level: Level from `parse_noise`.
      subjects: All subjects of the data set; only for a relative level.
      texts: Running text; only for a level that `needs_texts`. The original takes 1,000 articles of wikitext.

    Returns:
      The distribution to draw from.

    Raises:
      ValueError: If the level needs subjects or texts and none are given.

    Example:
      >>> noise = fit_noise(model, parse_noise("s3"), subjects=["Gothulf Punby"])
      >>> noise.distribution.value, round(noise.value, 2)
      ('gaussian', 0.41)
    """
    if level.needs_texts:
        mean, covariance = embedding_moments(model, texts)
        values, vectors = np.linalg.eigh(covariance)
        root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        return Noise(level.distribution, level.value, mean, root)
    scale = subject_embedding_std(model, subjects) if level.relative else 1.0
    return Noise(level.distribution, level.value * scale)


def subject_embedding_std(model: LanguageModel, subjects: Sequence[str]) -> float:
    """Computes the standard deviation over all elements of the subjects' token embeddings.

    Three times this is the noise level of the paper (section 2.1, footnote 1). The sum of squares is divided by n − 1,
    and subjects are tokenized without a leading space, both as in the original.

    Args:
      model: Model whose token embeddings are measured.
      subjects: Texts; a token that occurs twice counts twice.

    Raises:
      ValueError: If there are no subjects.

    Example:
      >>> round(subject_embedding_std(model, ["Gothulf Punby"]), 3)
      0.137
    """
    ids = bare_ids(model.tokenizer, subjects, "subjects")
    if not any(ids):
        raise ValueError("subjects is empty: give at least one subject.")
    embedding = np.asarray(model.params["wte"]["embedding"], np.float64)
    return float(embedding[np.concatenate(ids)].std(ddof=1))


def embedding_moments(model: LanguageModel, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Computes the mean and the covariance of the token embeddings of running text.

    Args:
      model: Model whose token embeddings are measured.
      texts: Running text; each occurrence of a token counts.

    Returns:
      The mean [D] and the covariance [D, D], float64.

    Raises:
      ValueError: If there is no text.

    Example:
      >>> mean, covariance = embedding_moments(model, ["Gothulf Punby plays the sport of"])
      >>> mean.shape, covariance.shape
      ((128,), (128, 128))
    """
    counts = np.zeros(model.config.vocab_size)
    for text in texts:
        (ids,) = bare_ids(model.tokenizer, [text])
        counts += np.bincount(np.array(ids, int), minlength=len(counts))
    total = counts.sum()
    if not total or not math.isfinite(total):
        raise ValueError("texts is empty: give running text to fit the noise to.")
    embedding = np.asarray(model.params["wte"]["embedding"], np.float64)[: len(counts)]
    mean = counts @ embedding / total
    centered = embedding - mean
    return mean, (centered * counts[:, None]).T @ centered / total
