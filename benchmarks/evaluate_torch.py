"""Straightforward evaluation of an edit in PyTorch, as the baseline of `benchmarks.evaluate`.

The steps are: score, edit, write the edit into the weights, score again, and restore the weights. As in the original
implementation, the prompts of a case run in one padded batch with one row per prompt and target, and the logits of all
positions are computed. The module shares no code with rome_jax and reads the same token arrays.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from benchmarks import rome_torch
from benchmarks.timing import timed


@dataclasses.dataclass(frozen=True)
class Rows:
    """A padded batch of R rows, each with a prompt and a target.

    Attributes:
      ids, mask: int64 [R, T] tokens and attention mask.
      columns: For each row, int64 [M] columns that predict the target's tokens.
      targets: For each row, int64 [M] tokens of the target.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    columns: Sequence[torch.Tensor]
    targets: Sequence[torch.Tensor]

    @classmethod
    def of(cls, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], device: torch.device) -> Rows:
        """Builds a batch with padding on the right.

        Args:
          pairs: R pairs (prompt, target) of tokens.
          device: Device of the model.

        Example:
          >>> Rows.of([((7, 8), (1, 2)), ((7,), (3,))], torch.device("cpu")).ids.tolist()
          [[7, 8, 1, 2], [7, 3, 0, 0]]
        """
        rows = [torch.tensor([*prompt, *target]) for prompt, target in pairs]
        masks = [torch.ones_like(row) for row in rows]
        ids, mask = (
            torch.nn.utils.rnn.pad_sequence(x, batch_first=True).to(device) for x in (rows, masks)
        )
        columns = [
            len(prompt) - 1 + torch.arange(len(target), device=device) for prompt, target in pairs
        ]
        targets = [torch.tensor(target, device=device) for _, target in pairs]
        return cls(ids, mask, columns, targets)


@dataclasses.dataclass(frozen=True)
class Result:
    """Scores before and after an edit, and the time of both stages.

    Attributes:
      before, after: float [R] mean NLL per target token, without and with the edit.
      edit: Seconds to compute ΔW.
      scoring: Seconds to score twice and to write and restore the weights.
    """

    before: np.ndarray
    after: np.ndarray
    edit: float
    scoring: float


@torch.no_grad()
def nlls(model, rows: Rows) -> np.ndarray:
    """Returns the mean NLL per target token of each row, float [R].

    Args:
      model: A GPT2LMHeadModel.
      rows: Batch on the model's device.
    """
    logits = model(rows.ids, attention_mask=rows.mask, use_cache=False).logits
    each = zip(logits, rows.columns, rows.targets, strict=True)
    return np.array(
        [
            torch.nn.functional.cross_entropy(row[columns].float(), targets).item()
            for row, columns, targets in each
        ]
    )


@contextlib.contextmanager
def written(model, layer: int, u: torch.Tensor, right: torch.Tensor) -> Iterator[None]:
    """Adds ΔW = u ⊗ right to the MLP down-projection of a layer inside a `with` block, then restores its weights."""
    weight = model.transformer.h[layer].mlp.c_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight += torch.outer(u, right)
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def evaluate(model, case: rome_torch.Case, rows: Rows) -> Result:
    """Evaluates one case: scores, edits, scores again, and restores the model.

    Args:
      model: A GPT2LMHeadModel whose parameters require no gradients.
      case: Edit, on the model's device.
      rows: Prompts and targets to score, on the model's device.
    """
    device = rows.ids.device

    def edit():
        factors = rome_torch.edit(model, case)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return factors

    def score():
        with written(model, case.layer, *factors):
            return nlls(model, rows)

    before_seconds, before = timed(lambda: nlls(model, rows))
    edit_seconds, factors = timed(edit)
    after_seconds, after = timed(score)
    return Result(before, after, edit_seconds, before_seconds + after_seconds)
