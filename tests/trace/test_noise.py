"""Noise levels as texts, and the distributions they stand for."""

import functools

import jax
import numpy as np
import pytest

from rome_jax.models.precision import BFLOAT16, TF32
from rome_jax.trace.noise import (
    Distribution,
    Noise,
    NoiseLevel,
    embedding_moments,
    fit_noise,
    parse_noise,
    subject_embedding_std,
)

TEXTS = ("Linux is a kernel written by Linus", "The Space Needle is in Seattle")
SHAPE = (2000, 3)
MANY = (20_000, 2)


@pytest.fixture(scope="module")
def plain(golden_model):
    return golden_model("gpt2")


@pytest.fixture(scope="module")
def drawn(plain):
    """drawn(text) -> vectors [samples · tokens, width] of the noise that is fitted to the texts."""

    @functools.cache
    def draw(text):
        noise = fit_noise(plain, parse_noise(text), texts=TEXTS)
        vectors = noise.draw(jax.random.key(1), *MANY, plain.config.width)
        return np.asarray(vectors, np.float64).reshape(-1, plain.config.width)

    return draw


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("s3", NoiseLevel(Distribution.GAUSSIAN, 3.0, relative=True)),
        ("0.1", NoiseLevel(Distribution.GAUSSIAN, 0.1)),
        ("u.25", NoiseLevel(Distribution.UNIFORM, 0.25)),
        ("t3", NoiseLevel(Distribution.STUDENT_T, 3.0)),
        ("m", NoiseLevel(Distribution.MULTIVARIATE, 0.0)),
    ],
)
def test_levels_are_read_as_the_original_writes_them(text, level):
    assert parse_noise(text) == level


@pytest.mark.parametrize("text", ["", "s", "x3", "-1", "0", "u0", "t2", "t", "nan", "m3", "3s"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=r"s3 .*u0\.1") as error:
        parse_noise(text)
    assert repr(text) in str(error.value)


def test_gaussian_and_uniform_have_their_scale(plain):
    width, key = plain.config.width, jax.random.key(0)
    gaussian = fit_noise(plain, parse_noise("s3"), subjects=["Linux"])
    drawn = np.asarray(gaussian.draw(key, *SHAPE, width))
    assert drawn.shape == (*SHAPE, width)
    std = 3 * subject_embedding_std(plain, ["Linux"])
    assert drawn.std() == pytest.approx(std, rel=0.01)  # 384,000 draws: σ of the estimate is 0.1 %.
    uniform = np.asarray(Noise(Distribution.UNIFORM, 0.2).draw(key, *SHAPE, width))
    assert np.abs(uniform).max() <= 0.2
    assert uniform.std() == pytest.approx(0.2 / np.sqrt(3), rel=0.01)


@pytest.mark.parametrize("text", ["m", "t5"])
def test_fitted_noise_has_the_covariance_of_the_text(plain, drawn, text):
    mean, covariance = embedding_moments(plain, TEXTS)
    noise = fit_noise(plain, parse_noise(text), texts=TEXTS)
    np.testing.assert_allclose(noise.root @ noise.root, covariance, atol=1e-12)
    vectors = drawn(text)
    scale = np.sqrt(np.trace(covariance))
    assert np.linalg.norm(vectors.mean(0) - (mean if text == "m" else 0.0)) < 0.02 * scale
    found = np.cov(vectors.T)
    assert np.linalg.norm(found - covariance) < 0.05 * np.linalg.norm(covariance)


def test_students_tails_are_heavier(drawn):
    longest = [np.linalg.norm(drawn(text), axis=-1).max() for text in ("t3", "m")]
    assert longest[0] > 2 * longest[1]


def test_every_occurrence_of_a_token_counts_in_the_moments(plain):
    mean, covariance = embedding_moments(plain, TEXTS)
    ids = [
        i for text in TEXTS for i in plain.tokenizer(text, add_special_tokens=False)["input_ids"]
    ]
    rows = np.asarray(plain.params["wte"]["embedding"], np.float64)[ids]
    np.testing.assert_allclose(mean, rows.mean(0), atol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(rows.T, bias=True), atol=1e-12)


def test_missing_subjects_and_texts_are_named(plain):
    with pytest.raises(ValueError, match="subjects is empty"):
        fit_noise(plain, parse_noise("s3"))
    with pytest.raises(ValueError, match="texts is empty"):
        fit_noise(plain, parse_noise("m"))


def test_draws_depend_only_on_the_key(plain):
    noise, width = Noise(Distribution.GAUSSIAN, 1.0), plain.config.width
    first, again, other = (
        np.asarray(noise.draw(jax.random.key(k), *SHAPE, width)) for k in (0, 0, 1)
    )
    assert (first == again).all() and (first != other).all()


def test_a_product_with_a_covariance_has_the_chosen_precision():
    rng = np.random.default_rng(0)
    noise = Noise(Distribution.MULTIVARIATE, 0.0, np.zeros(18), rng.standard_normal((18, 18)))
    draw = functools.partial(noise.draw, jax.random.key(0), 20, 3, 18)
    exact = np.asarray(draw())
    for precision, bits in ((TF32, 10), (BFLOAT16, 7)):
        moved = (np.asarray(draw(precision)) - exact).std() / exact.std()
        assert 2.0 ** -(bits + 3) < moved < 2.0**-bits
