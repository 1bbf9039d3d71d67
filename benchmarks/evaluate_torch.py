"""Evaluating an edit in PyTorch the straightforward way, to measure against: score, edit, write, score, restore.

The prompts of a case run in one padded batch, a row for each prompt and target, with the logits of all positions, as
in the original implementation. It shares no code with rome_jax and reads the same token arrays.
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
    """A padded batch of R rows, each of a prompt and a target.

    Attributes:
      ids, mask: int64 [R, T].
      columns: of each row, int64 [M], where the target's tokens are predicted.
      targets: of each row, int64 [M].
    """

    ids: torch.Tensor
    mask: torch.Tensor
    columns: Sequence[torch.Tensor]
    targets: Sequence[torch.Tensor]

    @classmethod
    def of(cls, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], device: torch.device) -> Rows:
        """Pads on the right.

        Args:
          pairs: R of (prompt, target), in tokens.
          device: the model's.

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
    """What an edit does, and the seconds that it took.

    Attributes:
      before, after: float [R], mean NLL per target token, without and with the edit.
      edit: seconds of finding ΔW.
      scoring: seconds of both scores and of writing and restoring the weights.
    """

    before: np.ndarray
    after: np.ndarray
    edit: float
    scoring: float


@torch.no_grad()
def nlls(model, rows: Rows) -> np.ndarray:
    """Mean NLL per target token, float [R].

    Args:
      model: a GPT2LMHeadModel.
      rows: on its device.

    Example:
      >>> nlls(model, rows).shape  # doctest: +SKIP
      (46,)
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
    """ΔW = u ⊗ right is in the down-projection meanwhile, whose weights are kept and put back.

    Example:
      >>> with written(model, 5, *rome_torch.edit(model, case)):  # doctest: +SKIP
      ...     nlls(model, rows)
    """
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
    """One case: scores before the edit, the edit, scores after it; the model is then what it was.

    Args:
      model: a GPT2LMHeadModel whose parameters require no gradients.
      case: the edit, on the model's device.
      rows: what is scored.

    Example:
      >>> evaluate(model, case, rows).after.shape  # doctest: +SKIP
      (46,)
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
