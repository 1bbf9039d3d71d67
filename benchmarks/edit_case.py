"""A ROME edit as `benchmarks.edit` pins it: token arrays, and the work that both sides do. Imports no torch.

A request has 21 contexts (the bare prompt, 10 prefixes of 5 tokens and 10 of 10: what sampling 5 and 10 tokens with
the begin-of-text token leaves, with the full stop), a prompt of 8 tokens with the subject at tokens 2 to 4 (from 0),
a target of two tokens, and the row "{subject} is a".
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from rome_jax.data.tokens import TokenBatch, pad
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.stages.inputs import EditInputs
from rome_jax.models.config import ModelConfig

LAYERS = {"gpt2": 5, "gpt2-medium": 8}
PREFIXES = (0, *[5] * 10, *[10] * 10)
PROMPT, SUBJECT_LAST, TARGET = 8, 4, 2
SUBJECT = 3
STEPS = 20


def make_inputs(num_requests: int, vocab_size: int, seed: int = 0) -> EditInputs:
    """Token arrays of random requests, which share their 21 prefixes."""
    generator = np.random.default_rng(seed)

    def tokens(count: int) -> list[int]:
        return generator.integers(vocab_size, size=count).tolist()

    prefixes, rows, targets = [tokens(length) for length in PREFIXES], [], []
    for _ in range(num_requests):
        prompt, target = tokens(PROMPT), tokens(TARGET)
        rows += [prefix + prompt + target[:-1] for prefix in prefixes]
        rows.append(prompt[SUBJECT_LAST + 1 - SUBJECT : SUBJECT_LAST + 1] + tokens(2))
        targets.append(target)
    batch = pad(rows, multiple=4)
    prefix_lengths = np.array(PREFIXES)
    lookup = np.append(prefix_lengths + SUBJECT_LAST, SUBJECT - 1)
    columns = prefix_lengths[:, None] + PROMPT - 1 + np.arange(TARGET)
    return EditInputs.of(
        TokenBatch(batch.ids, batch.mask, np.repeat(np.arange(num_requests), len(lookup))),
        np.tile(lookup, (num_requests, 1)),
        np.tile(columns, (num_requests, 1, 1)),
        np.array(targets),
        np.ones((num_requests, TARGET), bool),
    )


def first_case(inputs: EditInputs, config: ROMEConfig) -> dict[str, Any]:
    """The first request as `rome_torch.Case` names its parts, without the columns that only bucketing has added."""
    num_rows = inputs.lookup.shape[1]
    mask = np.asarray(inputs.batch.mask[:num_rows])
    length = mask.any(0).sum()
    return {
        "ids": np.asarray(inputs.batch.ids[:num_rows, :length]).astype(np.int64),
        "mask": mask[:, :length].astype(np.int64),
        "lookup": np.asarray(inputs.lookup[0]),
        "target_columns": np.asarray(inputs.target_columns[0]),
        "target_ids": np.asarray(inputs.target_ids[0]),
        "layer": config.layers[0],
        "steps": config.v_num_grad_steps,
        "lr": config.v_lr,
        "weight_decay": config.v_weight_decay,
        "kl_factor": config.kl_factor,
        "clamp_factor": config.clamp_norm_factor,
    }


@dataclasses.dataclass(frozen=True)
class Work:
    """Floating-point operations of one request: of products with weights alone, attention itself is below 2 %."""

    rome_jax: float
    torch: float


def count_work(config: ModelConfig, inputs: EditInputs, layer: int) -> Work:
    """Two operations a weight and token; the backward pass to activations costs what the forward pass does."""
    per_layer = 2 * (4 * config.width**2 + 2 * config.width * config.mlp_width)
    head = 2 * config.width * config.vocab_size
    (num_requests, num_rows), above = inputs.lookup.shape, config.num_layers - layer - 1
    below, prefix, contexts = inputs.batch.ids.shape[1], inputs.num_prefix, inputs.contexts
    if contexts is not None:  # a row's share of what its group runs once
        shared = contexts.num_shared * contexts.num_groups / num_requests
        below, prefix = shared + contexts.num_own, shared + contexts.num_own_prefix
    passes = 2 * STEPS - 1  # 20 forward, 19 backward
    suffix = num_rows * inputs.num_suffix
    target = inputs.target_columns.shape[-1]
    read = (num_rows - 1) * target + 1
    last = (3 * inputs.num_suffix + 12 * target) / (12 * inputs.num_suffix)  # of the last layer
    once = num_rows * (below * (layer + 1) + prefix * above)
    ours = once * per_layer + passes * (suffix * (above - 1 + last) * per_layer + read * head)
    tokens = num_rows * int(np.asarray(inputs.batch.mask).any(0).sum())
    forward_pass = tokens * (config.num_layers * per_layer + head)
    backward_pass = tokens * (above * per_layer + head)
    return Work(ours, (STEPS + 1) * forward_pass + (STEPS - 1) * backward_pass)
