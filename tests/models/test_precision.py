"""Precision of matrix products: its words, the rounding of an emulated one, and the programs that it decides."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import Precision

from rome_jax.data.tokens import pad
from rome_jax.models import forward
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate
from rome_jax.models.precision import (
    BFLOAT16,
    TF32,
    WORDS,
    as_precision,
    dot_general,
    einsum,
    is_emulated,
)
from tests.models.checkpoints import SEQUENCES, random_params, tiny_config

BITS = {TF32: 10, BFLOAT16: 7}
FAMILIES = ("gpt2", "gptj", "llama")


def rounded(values, bits):
    """Rounds float32 values to nearest even at a number of mantissa bits, in integer arithmetic."""
    drop = 23 - bits
    raw = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    raw += (1 << (drop - 1)) - 1 + ((raw >> drop) & 1)
    return ((raw >> drop) << drop).astype(np.uint32).view(np.float32)


def values():
    """Random numbers of many magnitudes, and numbers halfway between two neighbors of 10 or 7 bits."""
    rng = np.random.default_rng(0)
    random = rng.standard_normal(500) * 2.0 ** rng.integers(-40, 40, 500)
    ties = [1 + odd * 2.0 ** -(bits + 1) for bits in BITS.values() for odd in (1, 3, 5, 7)]
    carries = [2 - 2.0**-11, 2 - 2.0**-8, 2 - 2.0**-20]
    return np.array([*random, *ties, *np.negative(ties), *carries, 0.0], np.float32)


def at(precision, family="gpt2"):
    return tiny_config(family, precision=precision)


def primitives(function, *arguments):
    """Counts (primitive, precision) of a program, including the programs inside it."""
    counts = collections.Counter()

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            counts[equation.primitive.name, equation.params.get("precision")] += 1
            jax.tree.map(
                lambda part: visit(getattr(part, "jaxpr", part)) if hasattr(part, "eqns") else None,
                list(equation.params.values()),
                is_leaf=lambda part: hasattr(part, "eqns"),
            )

    visit(jax.make_jaxpr(function)(*arguments).jaxpr)
    return counts


def products(counts):
    return {precision for name, precision in counts if name == "dot_general"}


@pytest.mark.parametrize("precision", BITS)
def test_inputs_are_rounded_to_exactly_the_bits_of_the_format(precision):
    expected = rounded(values(), BITS[precision])
    one = np.ones(1, np.float32)
    assert (expected != values()).mean() > 0.9
    np.testing.assert_array_equal(einsum("i,j->ij", values(), one, precision)[:, 0], expected)
    np.testing.assert_array_equal(einsum("j,i->ij", one, values(), precision)[:, 0], expected)
    if precision is BFLOAT16:
        np.testing.assert_array_equal(jnp.asarray(values()).astype(jnp.bfloat16), expected)


@pytest.mark.parametrize("precision", BITS)
def test_gradients_are_products_of_rounded_inputs(precision):
    """Each of the two products rounds the cotangent and one input; their results are not rounded."""
    rng = np.random.default_rng(1)
    x, w, g = (rng.standard_normal(shape, np.float32) for shape in ((5, 7), (7, 3), (5, 3)))
    dims = (((1,), (0,)), ((), ()))
    out, pull = jax.vjp(lambda x, w: dot_general(x, w, dims, precision), x, w)
    x, w, g_rounded = (rounded(array, BITS[precision]) for array in (x, w, g))
    for found, expected in zip(
        (out, *pull(g)), (x @ w, g_rounded @ w.T, x.T @ g_rounded), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
        assert (rounded(found, BITS[precision]) != found).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_product_of_a_model_follows_its_precision(family):
    """A highest program rounds nothing; an emulated one rounds both inputs of each product, deltas' included."""
    config = at("highest", family)
    params, batch = random_params(config), pad(SEQUENCES)
    one = np.ones((1, 40, 1), np.float32)
    delta = Delta((LowRankUpdate(Leaf.MLP_DOWN, np.array([1]), one, one[:, :18]),))

    def program(precision):
        chosen = dataclasses.replace(config, precision=precision)
        return primitives(
            lambda params: forward.logits(params, chosen, batch, deltas=delta), params
        )

    plain, tf32 = program("highest"), program("tf32")
    assert products(plain) == {(Precision.HIGHEST,) * 2}
    assert not any(name == "reduce_precision" for name, _ in plain)
    count = plain["dot_general", (Precision.HIGHEST,) * 2]
    assert tf32["dot_general", (Precision.HIGHEST,) * 2] == count
    assert sum(n for (name, _), n in tf32.items() if name == "reduce_precision") == 2 * count
    assert products(program("default")) == {(Precision.DEFAULT,) * 2}


def test_hardware_that_has_an_algorithm_runs_it(monkeypatch):
    x = np.ones((2, 2), np.float32)
    for backend, native in (("gpu", (TF32, BFLOAT16)), ("tpu", (BFLOAT16,)), ("cpu", ())):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        for precision in BITS:
            counts = primitives(lambda x, p=precision: einsum("ij,jk->ik", x, x, p), x)
            assert is_emulated(precision) == (precision not in native)
            want = precision if precision in native else (Precision.HIGHEST,) * 2
            assert products(counts) == {want}


def test_inputs_that_fit_into_the_format_are_multiplied_as_they_are():
    for dtype, precision, fits in (
        (jnp.bfloat16, TF32, True),
        (jnp.float16, TF32, True),
        (jnp.bfloat16, BFLOAT16, True),
        (jnp.float16, BFLOAT16, False),
    ):
        x = jnp.linspace(1, 2, 9).astype(dtype).reshape(3, 3)
        counts = primitives(lambda x, p=precision: einsum("ij,jk->ik", x, x, p), x)
        assert any(name == "reduce_precision" for name, _ in counts) != fits
        assert einsum("ij,jk->ik", x, x, precision).dtype == dtype


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_move_by_the_order_of_the_rounding(family):
    params, batch = random_params(at("highest", family)), pad(SEQUENCES)
    exact = np.asarray(forward.logits(params, at("highest", family), batch))
    for word, bits in (("tf32", 10), ("bfloat16", 7)):
        moved = np.asarray(forward.logits(params, at(word, family), batch))
        assert 2.0 ** -(bits + 3) < (moved - exact).std() / exact.std() < 2.0 ** -(bits - 1)
    np.testing.assert_array_equal(forward.logits(params, at("float64", family), batch), exact)


def test_words_and_members_are_accepted():
    assert [as_precision(word) for word in WORDS] == list(WORDS.values())
    for member in (*Precision, TF32, BFLOAT16):
        assert as_precision(member) is member
        assert tiny_config("gpt2", precision=member).precision is member
    assert as_precision("float32") is as_precision("float64") is Precision.HIGHEST
    assert (
        at("tf32") == at(TF32) and hash(at("tf32")) == hash(at(TF32)) and at("tf32") != at(BFLOAT16)
    )


@pytest.mark.parametrize(
    "precision", ["best", "TF32", 3, [], jax.lax.DotAlgorithmPreset.F16_F16_F16]
)
def test_other_precisions_are_refused_in_one_sentence(precision):
    for refuse in (as_precision, at):
        with pytest.raises(
            ValueError, match=r"^precision=.*: give one of 'highest', 'tf32'"
        ) as error:
            refuse(precision)
        assert str(error.value).count(". ") == 0 and str(error.value).endswith(".")


on_cpu = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="other devices multiply mixed dtypes"
)


def multiply(x, kernel, axis):
    """Multiplies by a kernel [in, out] if `axis` is 0, and by the embedding [out, in] of a tied head if it is 1."""
    dimensions = (((x.ndim - 1,), (axis,)), ((), ()))
    return dot_general(x, kernel, dimensions, preferred_element_type=jnp.float32)


@on_cpu
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("rows", [(), (1,), (2, 5)])
def test_float32_inputs_of_bfloat16_kernels_lose_no_digits(rows, axis):
    """Three bfloat16 parts hold all bits of an input."""
    generator = np.random.default_rng(0)
    x, gradient = (generator.standard_normal((*rows, n)).astype(np.float32) for n in (64, 7))
    kernel = jnp.asarray(generator.standard_normal((64, 7)), jnp.bfloat16)
    exact = np.asarray(kernel, np.float64)
    kernel = kernel.T if axis else kernel
    found, pull_back = jax.vjp(jax.jit(lambda x, kernel: multiply(x, kernel, axis)), x, kernel)
    of_x, of_kernel = pull_back(jnp.asarray(gradient))
    assert (found.dtype, of_x.dtype, of_kernel.dtype) == ("float32", "float32", "bfloat16")
    outer = x.reshape(-1, 64).astype(np.float64).T @ gradient.reshape(-1, 7)
    for values, expected, digits in (
        (found, x @ exact, 2e-7),
        (of_x, gradient @ exact.T, 2e-7),
        (of_kernel, outer.T if axis else outer, 2**-8),
    ):
        assert values.shape == expected.shape
        assert np.abs(values - expected).max() <= digits * np.abs(expected).max()


@on_cpu
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("rows", [1, 3])
def test_bfloat16_kernels_are_multiplied_in_place(rows, dtype, axis):
    """Neither the product nor its gradient holds a copy of a kernel, in any dtype."""
    shape = (512, 4096)[:: -1 if axis else 1]

    def squares(x, kernel):
        return (multiply(x, kernel, axis) ** 2).sum()

    program = jax.jit(jax.value_and_grad(squares)).lower(
        jax.ShapeDtypeStruct((rows, 512), dtype), jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    )
    temporaries = program.compile().memory_analysis().temp_size_in_bytes
    assert temporaries < 512 * 4096 / 4
