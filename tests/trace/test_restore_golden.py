"""The original's tables, number by number, under its own noise."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.tokens import TokenBatch
from rome_jax.models import forward
from rome_jax.models.interventions import Site
from rome_jax.models.patches import Patch, PatchMode, RunPatch
from rome_jax.trace import sweep
from rome_jax.trace.noise import subject_embedding_std
from rome_jax.trace.prompt import TracePrompt
from tests.golden_cases import TRACE_TABLES, TRACE_TOLERANCE

CASES = ("gpt2_one_token", "gpt2_mid", "gptj_one_token", "gptj_start")
LENGTH = 24  # all prompts are padded to it, so that those of a family share their programs
SAMPLES = 10  # of the golden noise


@pytest.fixture(scope="module", autouse=True)
def one_length():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rome_jax.trace.prompt._LENGTH_MULTIPLE", LENGTH)
        yield


@pytest.fixture(scope="module", params=CASES)
def found(request, golden):
    """A golden file."""
    return golden(f"trace_{request.param}")


@pytest.fixture(scope="module")
def case(found, golden_model):
    """The arrays of a golden file, its unit of noise, its model and its prompt."""
    model = golden_model(found.info["model"])
    prompt = TracePrompt.of(model.tokenizer, found.info["prompt"], found.info["subject"])
    return found.arrays, found.info["noise"], model, prompt


def check(runs, arrays, name, **options):
    table = sweep.trace(runs, **options)
    np.testing.assert_allclose(table, arrays[f"{name}_scores"], rtol=0, atol=TRACE_TOLERANCE)


def start(case, noise, **options):
    _, unit, model, prompt = case
    return sweep.start(model, prompt, (noise * unit).astype(np.float32), **options)


def test_prompts_are_tokenized_as_in_the_original(case):
    arrays, _, _, prompt = case
    assert prompt.ids == tuple(arrays["input_ids"])
    assert prompt.span == tuple(arrays["subject_range"])


def test_every_table(case):
    arrays, _, _, prompt = case
    runs = start(case, arrays["noise_unit"])
    assert len(runs.states.mask) == LENGTH
    assert int(runs.target[0]) == int(arrays["answer_id"])
    for score, name in ((runs.clean_score, "high"), (runs.corrupted_score, "low")):
        assert score == pytest.approx(float(arrays[f"default_{name}_score"]), abs=TRACE_TOLERANCE)
    for name, options in TRACE_TABLES.items():
        check(runs, arrays, name, **options)
    # A second token gives this trace as many places as the others have at once.
    table = sweep.trace(runs, tokens=[prompt.span[1] - 1, len(prompt.ids) - 1])
    expected = arrays["subject_last_scores"], arrays["default_scores"][-1:]
    np.testing.assert_allclose(table, np.concatenate(expected), rtol=0, atol=TRACE_TOLERANCE)


def test_uniform_noise(case):
    arrays, *_ = case
    runs = start(case, arrays["noise_unit_uniform"])
    check(runs, arrays, "uniform")
    low = float(arrays["uniform_low_score"])
    assert runs.corrupted_score == pytest.approx(low, abs=TRACE_TOLERANCE)


def test_replaced_embeddings(case):
    """The original adds the noise in its corrupted baseline instead of replacing; here the baseline replaces too."""
    arrays, _, _, prompt = case
    runs = start(case, arrays["noise_unit"], mode=PatchMode.REPLACE)
    check(runs, arrays, "replace")
    assert float(arrays["replace_low_score"]) == float(arrays["default_low_score"])
    assert abs(runs.corrupted_score - float(arrays["replace_low_score"])) > 1e-3
    # Restoring a token before the subject changes nothing, so the original's table contains the true baseline.
    if prompt.span[0]:
        assert runs.corrupted_score == pytest.approx(
            float(arrays["replace_scores"][0, 0]), abs=TRACE_TOLERANCE
        )


@pytest.mark.parametrize(("name", "site"), [("mlp", Site.MLP_OUT), ("attn", Site.ATTN_OUT)])
def test_severed_modules(case, name, site):
    """The original draws new noise for the values that severed modules keep."""
    arrays, *_ = case
    held, runs = (start(case, arrays[f"repatch_noise_unit_pass{n}"]) for n in (1, 2))
    table = sweep.trace(runs, severed=(site,), held=held)
    expected = arrays[f"repatch_table_{name}_severed"]
    np.testing.assert_allclose(table, expected, rtol=0, atol=TRACE_TOLERANCE)


def test_fewer_samples_of_less_noise(case):
    arrays, unit, *_ = case
    runs = start(case, arrays["noise_unit"][:3] * (0.5 / unit))
    check(runs, arrays, "samples3_noise0.5")


def test_noise_level_is_that_of_the_original(golden, golden_model):
    case = golden("trace_gpt2_s3")
    std = subject_embedding_std(golden_model("gpt2"), case.info["subjects"])
    assert std == pytest.approx(float(case.arrays["embedding_std"]), rel=1e-6)


# Any states restored together, as patches of a plain forward pass.

LAYER = re.compile(r"transformer\.h\.(\d+)(?:\.(mlp|attn))?|transformer\.wte")
SITES = {None: Site.RESIDUAL, "mlp": Site.MLP_OUT, "attn": Site.ATTN_OUT}


def patched(model, prompt, noise, states=(), held=None, held_states=()):
    """Builds a batch [S, T] and its patches: clean states put back, and others kept from a run under other noise.

    There are always seven patches, the corruption and two for each site. Most are empty, so that one program serves
    every list of states.
    """
    ids = np.zeros(LENGTH, np.int32)
    ids[: len(prompt.ids)] = prompt.ids
    column = np.arange(LENGTH)
    batch = TokenBatch(
        np.tile(ids, (len(noise), 1)), np.tile(column < len(prompt.ids), (len(noise), 1))
    )

    def corrupt(noise):
        spread = prompt.spread(jnp.asarray(noise, jnp.float32), LENGTH)
        return Patch(Site.EMBED, PatchMode.ADD, jnp.int32(0), column[None] >= 0, spread)

    def captured(noise):
        sites = tuple(SITES.values())
        return forward.capture(model.params, model.config, batch, sites, patches=(corrupt(noise),))

    patches = [corrupt(noise)]
    for source, chosen in (
        (np.zeros_like(noise), states),
        (noise if held is None else held, held_states),
    ):
        values = captured(source)
        for module, site in SITES.items():
            start, stop = np.zeros((2, LENGTH), np.int32)
            for token, name in chosen:
                layer, part = LAYER.fullmatch(name).groups()
                if layer is None:
                    continue  # The original corrupts after it restores embeddings, so they are lost.
                if part == module:
                    assert stop[token] in (0, int(layer)), "layers in a row"
                    start[token] = start[token] if stop[token] else int(layer)
                    stop[token] = int(layer) + 1
            patches.append(
                RunPatch(site, PatchMode.REPLACE, start, stop, stop > 0, column, values[site])
            )
    return batch, tuple(patches)


def probabilities(model, prompt, *arguments):
    """Returns the next-token probabilities [V], their mean over samples; arguments as in `patched`."""
    batch, patches = patched(model, prompt, *arguments)
    last = np.full((len(batch.ids), 1), len(prompt.ids) - 1)
    logits = forward.logits(model.params, model.config, batch, positions=last, patches=patches)
    return np.asarray(jax.nn.softmax(logits[:, 0]).mean(0))


def test_states_patched_together(case, found):
    arrays, unit, model, prompt = case
    for name, chosen in found.info["trace_with_patch"].items():
        noise = arrays["noise_unit"] * (unit if chosen["tokens_to_mix"] else 0.0)
        answers = probabilities(model, prompt, noise, chosen["states_to_patch"])
        expected = float(arrays[f"patch_{name}"])
        assert answers[int(arrays["answer_id"])] == pytest.approx(expected, abs=TRACE_TOLERANCE), (
            name
        )
        if name == "several":
            np.testing.assert_allclose(
                answers[arrays["patch_answers_t"]],
                arrays["patch_several_answers"],
                rtol=0,
                atol=TRACE_TOLERANCE,
            )


def test_all_states_of_a_patched_run(case, found):
    arrays, unit, model, prompt = case
    states = found.info["trace_with_patch"]["one_state"]["states_to_patch"]
    arguments = model, prompt, arrays["noise_unit"] * unit, states
    expected = arrays["patch_traced_states"]  # [1 + S, T, L, D], the clean run first
    batch, patches = patched(*arguments)
    captured = forward.capture(
        model.params, model.config, batch, (Site.RESIDUAL,), patches=patches
    )[Site.RESIDUAL][:, :, : len(prompt.ids)]
    error = np.abs(captured - expected[1:].transpose(2, 0, 1, 3)).max()
    assert error <= 1e-5 * np.abs(expected).max()
    answer = probabilities(*arguments)[int(arrays["answer_id"])]
    assert answer == pytest.approx(float(arrays["patch_traced_probs"]), abs=TRACE_TOLERANCE)


def test_states_patched_and_unpatched_together(case, found):
    arrays, unit, model, prompt = case
    for name, chosen in found.info["trace_with_repatch"].items():
        first, second = (arrays[f"repatch_noise_unit_pass{n}"] * unit for n in (1, 2))
        held = chosen["states_to_unpatch"]
        noise = second if held else first  # Without states to keep there is no second pass.
        answers = probabilities(model, prompt, noise, chosen["states_to_patch"], first, held)
        expected = float(arrays[f"repatch_{name}"])
        assert answers[int(arrays["answer_id"])] == pytest.approx(expected, abs=TRACE_TOLERANCE), (
            name
        )


@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_clean_answers_of_several_prompts(family, golden, golden_model):
    found, model = golden(f"trace_{family}_predict_token"), golden_model(family)
    for index, text in enumerate(found.info["prompts"]):
        prompt = TracePrompt.of(model.tokenizer, text, text.split()[0])
        shape = SAMPLES, prompt.span[1] - prompt.span[0], model.config.width
        runs = sweep.start(model, prompt, np.zeros(shape, np.float32))
        assert int(runs.target[0]) == int(found.arrays["single_preds"][index])
        expected = float(found.arrays["single_probs"][index])
        assert runs.clean_score == pytest.approx(expected, abs=TRACE_TOLERANCE)
