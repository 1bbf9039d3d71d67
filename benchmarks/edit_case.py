"""A ROME edit of fixed shapes for the benchmarks: its token arrays and the work of both sides.

A request has 21 contexts: the bare prompt, 10 prefixes of 5 tokens, and 10 prefixes of 10 tokens. Sampled prefixes have
these lengths, because the begin-of-text token is dropped from the 5 or 10 tokens and a full stop is added. The prompt
has 8 tokens with the subject at tokens 2 to 4 (counted from 0), the target has two tokens, and the row
"{subject} is a" has five tokens. This module does not import torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from rome_jax.data.tokens import pad
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.spread_config import SpreadConfig
from rome_jax.edit.stages.inputs import EditInputs, EssenceRows, TargetRows
from rome_jax.models.config import ModelConfig

LAYERS = {"gpt2": 5, "gpt2-medium": 8}
PREFIXES = (0, *[5] * 10, *[10] * 10)
PROMPT, SUBJECT_LAST, TARGET = 8, 4, 2
SUBJECT = 3
STEPS = 20


def make_inputs(
    num_requests: int, vocab_size: int, seed: int = 0, prefixes: Sequence[int] = PREFIXES
) -> EditInputs:
    """Builds the token arrays of random requests that share their prefixes.

    Args:
      num_requests: Number of requests, N.
      vocab_size: Tokens are drawn uniformly below this number.
      seed: Seed of the random tokens.
      prefixes: Number of tokens of each prefix; the first is 0, the bare prompt.
    """
    generator = np.random.default_rng(seed)

    def tokens(count: int) -> list[int]:
        return generator.integers(vocab_size, size=count).tolist()

    begun = [tokens(length) for length in prefixes]
    # All tokens of one request are drawn together, so that the first request does not depend on N.
    cases = [(tokens(PROMPT), tokens(TARGET), tokens(2)) for _ in range(num_requests)]
    rows = [prefix + prompt + target[:-1] for prefix in begun for prompt, target, _ in cases]
    subject = slice(SUBJECT_LAST + 1 - SUBJECT, SUBJECT_LAST + 1)
    rows += [prompt[subject] + rest for prompt, _, rest in cases]
    begins = np.repeat(np.array(prefixes)[:, None], num_requests, axis=1)  # [K, N]
    return EditInputs.of(
        pad(rows),
        TargetRows(
            fact=begins + SUBJECT_LAST,
            read=begins[..., None] + PROMPT - 1 + np.arange(TARGET),
            ids=np.array([target for _, target, _ in cases]),
            mask=np.ones((num_requests, TARGET), bool),
        ),
        EssenceRows(np.full(num_requests, SUBJECT - 1)),
    )


def first_case(inputs: EditInputs, config: ROMEConfig | SpreadConfig) -> dict[str, Any]:
    """Returns the parts of the first request under the field names of `rome_torch.Case`.

    The rows are padded on the right to the length of the longest row.

    Args:
      inputs: Token arrays of one or more requests.
      config: Hyperparameters of the edit; its first layer is edited.
    """
    mask = np.asarray(inputs.batch.mask[:: inputs.num_requests])
    lengths = mask.sum(1)
    ids = np.zeros((len(mask), lengths.max()), np.int64)
    own = np.arange(lengths.max()) < lengths[:, None]
    ids[own] = np.asarray(inputs.batch.ids[:: inputs.num_requests])[mask]
    first = mask.argmax(1)  # padding columns on the left of each row
    return {
        "ids": ids,
        "mask": own.astype(np.int64),
        "lookup": np.asarray(inputs.fact)[:: inputs.num_requests] - first,
        "target_columns": np.asarray(inputs.targets.read[:, 0]) - first[:-1, None],
        "target_ids": np.asarray(inputs.targets.ids[0]),
        "layer": config.layers[0],
        "steps": config.v_num_grad_steps,
        "lr": config.v_lr,
        "weight_decay": config.v_weight_decay,
        "kl_factor": config.kl_factor,
        "clamp_factor": config.clamp_norm_factor,
    }


@dataclasses.dataclass(frozen=True)
class Work:
    """Floating-point operations per request.

    Only matrix products with weights are counted. The products inside attention add less than 2 %.

    Attributes:
      rome_jax: Operations of rome_jax.
      torch: Operations of the PyTorch implementation.
    """

    rome_jax: float
    torch: float


def count_work(config: ModelConfig, inputs: EditInputs, layer: int) -> Work:
    """Counts the floating-point operations of a ROME edit, per request.

    Each token takes two operations per weight. The backward pass computes gradients of activations only, so it costs
    as much as the forward pass.

    Args:
      config: Configuration of the model.
      inputs: Token arrays; columns that several requests share are divided among them.
      layer: Edit layer.
    """
    per_layer = 2 * (4 * config.width**2 + 2 * config.width * config.mlp_width)
    head = 2 * config.width * config.vocab_size
    num_rows, above = len(inputs.targets.fact) + 1, config.num_layers - layer - 1
    below, prefix = inputs.batch.ids.shape[1], inputs.num_prefix
    num_suffix = below - prefix
    if inputs.shared is not None:  # each row's share of the packed columns
        packed = (inputs.shared.rows.batch, inputs.shared.prefixes.batch)
        below, prefix = (batch.ids.size / (num_rows * inputs.num_requests) for batch in packed)
    passes = 2 * STEPS - 1  # 20 forward and 19 backward passes
    suffix = num_rows * num_suffix
    target = inputs.targets.read.shape[-1]
    read = (num_rows - 1) * target + 1
    # The fraction of the last layer that runs.
    last = (3 * num_suffix + 12 * target) / (12 * num_suffix)
    once = num_rows * (below * (layer + 1) + prefix * above)
    ours = once * per_layer + passes * (suffix * (above - 1 + last) * per_layer + read * head)
    tokens = num_rows * int(np.asarray(inputs.batch.mask).sum(1).max())
    forward_pass = tokens * (config.num_layers * per_layer + head)
    backward_pass = tokens * (above * per_layer + head)
    return Work(ours, (STEPS + 1) * forward_pass + (STEPS - 1) * backward_pass)
