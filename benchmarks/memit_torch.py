"""Straightforward MEMIT in PyTorch, as the baseline of `benchmarks.editors`: a Hugging Face model with forward hooks.

As in the published code, z is found for one request at a time, each evaluation of the loss runs all rows through all
layers, and each layer solves a system of F equations in float64. The module reads the token arrays of `edit_case`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from benchmarks.rome_torch import Case


def edit(
    model, cases: Sequence[Case], layers: Sequence[int], moments: Mapping[int, torch.Tensor], weight
) -> tuple[dict[int, torch.Tensor], dict[str, float]]:
    """Writes all requests at once, layer by layer.

    Args:
      model: A GPT2LMHeadModel whose parameters require no gradients; its weights are restored.
      cases: Requests; `Case.layer` is the last of `layers`.
      layers: Edited layers in ascending order.
      moments: float32 [F, F] second moment C of each layer.
      weight: λ.

    Returns:
      ΔW of each layer, float32 [F, D], and the seconds of each stage.
    """
    seconds = dict.fromkeys(("targets", "keys", "solve"), 0.0)

    def clock(stage: str, begun: float) -> float:
        now = time.perf_counter()
        seconds[stage] += now - begun
        return now

    now = time.perf_counter()
    targets = torch.stack([_state(model, case, layers[-1]) for case in cases])
    now = clock("targets", now)
    changes = {}
    for index, layer in enumerate(layers):
        keys, states = zip(*(_read(model, case, layer, layers[-1]) for case in cases), strict=True)
        now = clock("keys", now)
        matrix = torch.stack(keys, 1).double()  # [F, N]
        residual = (targets - torch.stack(states)).double().T / (len(layers) - index)  # [D, N]
        system = weight * moments[layer].double() + matrix @ matrix.T
        change = (torch.linalg.solve(system, matrix) @ residual.T).float()  # [F, D]
        changes[layer] = change
        model.transformer.h[layer].mlp.c_proj.weight.data += change
        now = clock("solve", now)
    for layer, change in changes.items():
        model.transformer.h[layer].mlp.c_proj.weight.data -= change
    return changes, seconds


@torch.no_grad()
def _read(model, case: Case, layer: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the key of a layer, with half of the weight on the bare prompt, and the state after the last layer."""
    rows = torch.arange(len(case.ids))
    found = {}
    hooks = [
        model.transformer.h[layer].mlp.c_proj.register_forward_hook(
            lambda module, args, output: found.update(key=args[0])
        ),
        model.transformer.h[last].register_forward_hook(
            lambda module, args, output: found.update(state=_first(output))
        ),
    ]
    model(case.ids, attention_mask=case.mask)
    for hook in hooks:
        hook.remove()
    keys = found["key"][rows, case.lookup][:-1]
    return (keys[0] + keys[1:].mean(0)) / 2, found["state"][0, case.lookup[0]]


def _first(output):
    """Returns the hidden states of a block's output, which older versions of transformers wrap in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def _state(model, case: Case, layer: int) -> torch.Tensor:
    """Finds z of one request with Adam."""
    rows = torch.arange(len(case.ids))
    found = {}

    def add(module, args, output):
        hidden = _first(output).clone()
        found.setdefault("start", hidden[0, case.lookup[0]].detach().clone())
        hidden[rows, case.lookup] += delta
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    delta = torch.zeros(model.config.n_embd, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=case.lr)
    hook = model.transformer.h[layer].register_forward_hook(add)
    initial = None
    for step in range(case.steps):
        log_probs = model(case.ids, attention_mask=case.mask).logits.log_softmax(-1)
        at_targets = log_probs[rows[:-1, None], case.target_columns]  # [K, M, V]
        nll = -at_targets.gather(-1, case.target_ids.expand(len(at_targets), -1)[..., None]).mean()
        essence = log_probs[-1, case.lookup[-1]]
        initial = essence.detach() if initial is None else initial
        kl = (essence.exp() * (essence - initial)).sum()
        start = found["start"]
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
    return (found["start"] + delta).detach()
