"""ROME in PyTorch the straightforward way, to measure against: a Hugging Face model, forward hooks, whole passes.

Every evaluation of the loss runs all rows through all layers and all positions through the head, and goes back the
same way, as the original implementation does. It shares no code with rome_jax and reads the same token arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


@dataclasses.dataclass(frozen=True)
class Case:
    """Token arrays of one request, and the constants of the edit.

    Attributes:
      ids, mask: [K + 1, T], K templates and the essence row, padded on the right.
      lookup: [K + 1], the column of the last subject token.
      target_columns: [K, M], the columns whose next tokens are the target's.
      target_ids: [M].
      layer: the edit layer.
      inverse: [F, F], C⁻¹.
      steps: evaluations of the loss.
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
        """From what `edit_case.first_case` gives.

        Args:
          parts: arrays and numbers by name.
          inverse: [F, F], C⁻¹.
          device: the model's; None for the CPU.
        """
        parts = {
            name: torch.tensor(value, device=device) if isinstance(value, np.ndarray) else value
            for name, value in parts.items()
        }
        return cls(**parts, inverse=torch.tensor(inverse, dtype=torch.float32, device=device))


def edit(model, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of ΔW = u ⊗ right, with the key mode of the published code: float32 u [F], right [D].

    The arithmetic of the edit is float32, whatever the weights are.
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
    """δ, by Adam."""
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
        # The norm's own gradient at zero is zero here, as in the original.
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
