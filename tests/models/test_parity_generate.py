"""Greedy continuations are token for token those of `transformers`."""

import itertools

import jax
import numpy as np
import pytest

from rome_jax.data.tokens import pad
from rome_jax.models.generate import generate
from rome_jax.models.huggingface import save_params
from tests.models.checkpoints import FAMILIES, random_params, tiny_config

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

PROMPTS = [[5, 6, 7, 8, 9], [11], [3, 1, 4, 1, 5, 9, 2, 6], [40, 41]]


SHAPES = [{}, {"num_heads": 1, "mlp_width": 72, "tie_embeddings": True}]


@pytest.mark.parametrize(
    "family, shape",
    [
        *itertools.product(FAMILIES, SHAPES),
        *itertools.product(["llama", "mistral", "qwen2", "qwen3", "gpt_neox"], SHAPES[:1]),
    ],
)
def test_greedy_continuation(family, shape, tmp_path):
    from transformers import AutoModelForCausalLM

    # Weights much larger than a new model's avoid ties and texts that repeat one token.
    config = tiny_config(family, **shape)
    params = jax.tree.map(lambda leaf: 2 * leaf, random_params(config))
    save_params(tmp_path, params, config)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    batch = pad(PROMPTS, left=True)
    with torch.no_grad():
        want = theirs.generate(
            torch.tensor(batch.ids, dtype=torch.long),
            attention_mask=torch.tensor(batch.mask, dtype=torch.long),
            do_sample=False,
            max_new_tokens=20,
            min_new_tokens=20,
            eos_token_id=None,
            pad_token_id=0,
        )
    got = generate(params, config, batch, max_new_tokens=20).tokens(with_prompt=False)
    np.testing.assert_array_equal(got, want[:, batch.ids.shape[1] :].numpy())
    assert len(set(np.ravel(got))) > 8
