"""Straightforward ROME in PyTorch, as the baseline of the benchmarks: a Hugging Face model with forward hooks.

As in the original implementation, each evaluation of the loss runs all rows through all layers and computes the logits
of all positions, and the backward pass does the same in reverse. The module shares no code with rome_jax and reads the
same token arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


@dataclasses.dataclass(frozen=True)
class Case:
    """Token arrays of one request and the hyperparameters of the edit.

    Attributes:
      ids, mask: [K + 1, T] rows of the K context templates and the essence row, padded on the right.
      lookup: [K + 1] column of the last subject token.
      target_columns: [K, M] columns that predict the target's tokens.
      target_ids: [M] tokens of the target.
      layer: Edit layer.
      inverse: [F, F] inverse second moment C⁻¹.
      steps: Number of evaluations of the loss.
      lr: Learning rate of Adam.
      weight_decay: Weight of the term ‖δ‖ / ‖v₀‖² of the loss.
      kl_factor: Weight of the KL divergence of the essence row.
      clamp_factor: Largest norm of δ, as a multiple of ‖v₀‖.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    lookup: torch.Tensor
    target_columns: torch.Tensor
    target_ids: torch.Tensor
    layer: int
    inverse: torch.Tensor
    steps: int
    lr: float
    weight_decay: float
    kl_factor: float
    clamp_factor: float

    @classmethod
    def of(
        cls,
        parts: Mapping[str, Any],
        inverse: np.ndarray,
        device: torch.device | None = None,
    ) -> Case:
        """Builds a case from the result of `edit_case.first_case`.

        Args:
          parts: Arrays and numbers by field name.
          inverse: [F, F] inverse second moment C⁻¹.
          device: Device of the model. Defaults to the CPU.
        """
        parts = {
            name: torch.tensor(value, device=device) if isinstance(value, np.ndarray) else value
            for name, value in parts.items()
        }
        return cls(**parts, inverse=torch.tensor(inverse, dtype=torch.float32, device=device))


def edit(model, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the factors of the update ΔW = u ⊗ right with the key mode of the published code.

    The arithmetic of the edit is float32, even if the weights have another dtype.

    Args:
      model: A GPT2LMHeadModel whose parameters require no gradients.
      case: Request and hyperparameters, on the model's device.

    Returns:
      (float32 [F] u, float32 [D] right).
    """
    mlp = model.transformer.h[case.layer].mlp
    rows = torch.arange(len(case.ids), device=case.ids.device)
    found = {}
    hook = mlp.c_proj.register_forward_hook(
        lambda module, args, output: found.update(key=args[0], value=output)
    )
    with torch.no_grad():
        model(case.ids, attention_mask=case.mask)
    hook.remove()
    keys = found["key"][rows, case.lookup][:-1].float()
    start = found["value"][0, case.lookup[0]].float()
    u = case.inverse @ keys.mean(0)
    u = u / u.norm()
    target = start + _value(model, case, start)
    return u, (target - start) / (keys[0] @ u)


def _value(model, case: Case, start: torch.Tensor) -> torch.Tensor:
    """Optimizes δ with Adam."""
    rows = torch.arange(len(case.ids), device=case.ids.device)
    delta = torch.zeros_like(start, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=case.lr)

    def add(module, args, output):
        output = output.clone()
        output[rows, case.lookup] += delta.to(output.dtype)
        return output

    hook = model.transformer.h[case.layer].mlp.register_forward_hook(add)
    initial = None
    for step in range(case.steps):
        log_probs = model(case.ids, attention_mask=case.mask).logits.float().log_softmax(-1)
        at_targets = log_probs[rows[:-1, None], case.target_columns]  # [K, M, V]
        nll = -at_targets.gather(-1, case.target_ids.expand(len(at_targets), -1)[..., None]).mean()
        essence = log_probs[-1, case.lookup[-1]]
        initial = essence.detach() if initial is None else initial
        kl = (essence.exp() * (essence - initial)).sum()
        # The gradient of the norm at δ = 0 is 0, as in the original implementation.
        decay = case.weight_decay * delta.norm() / start.norm() ** 2
        loss = nll + case.kl_factor * kl + decay
        if step == case.steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            radius = case.clamp_factor * start.norm()
            if delta.norm() > radius:
                delta *= radius / delta.norm()
    hook.remove()
    return delta.detach()
