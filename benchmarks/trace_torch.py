"""Causal tracing in PyTorch the straightforward way, to measure against: a Hugging Face model and forward hooks.

Every restoration is one forward pass of a clean row and S noised ones through all layers and all positions, with the
logits of all of them, as the original implementation does. It shares nothing with rome_jax but the names of the
kinds ("hidden", "mlp", "attn"), and gets the same weights, tokens and noise.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import torch


@dataclasses.dataclass(frozen=True)
class Case:
    """One prompt.

    Attributes:
      ids: int64 [T].
      span: (first, last + 1) token of the subject.
      noise: float32 [S, n, D], added to the embeddings of the subject's n tokens.
      window: layers whose MLP or attention outputs are restored together.
    """

    ids: torch.Tensor
    span: tuple[int, int]
    noise: torch.Tensor
    window: int


@torch.inference_mode()
def sweep(model, case: Case, kind: str, places: Sequence[tuple[int, int]]) -> torch.Tensor:
    """The probability of the clean run's answer after each restoration.

    Args:
      model: a GPT2LMHeadModel or GPTJForCausalLM, on the device of the case.
      case: the prompt.
      kind: what is restored.
      places: N of (token, layer).

    Returns:
      float32 [N], on the CPU.

    Example:
      >>> sweep(model, case, "hidden", [(4, 0), (4, 1)]).shape  # doctest: +SKIP
      torch.Size([2])
    """
    rows = case.ids.expand(1 + len(case.noise), -1)
    scores = []
    with _noised(model, case):
        for token, layer in places:
            with _restored(modules(model, kind, layer, case.window), token):
                logits = model(rows, use_cache=False).logits
            probabilities = logits[:, -1].float().softmax(-1)
            answer = probabilities[0].argmax(keepdim=True)  # row 0 is the clean run
            scores.append(probabilities[1:].mean(0).gather(0, answer))
    return torch.cat(scores).cpu()


def modules(model, kind: str, layer: int, window: int) -> list[torch.nn.Module]:
    """Those whose outputs are restored together; windows end where the model does."""
    blocks = model.transformer.h
    if kind == "hidden":
        return [blocks[layer]]
    first, stop = max(0, layer - window // 2), min(len(blocks), layer + (window + 1) // 2)
    return [getattr(block, kind) for block in blocks[first:stop]]  # block.mlp or block.attn


@contextlib.contextmanager
def _hooked(hooked: Sequence[torch.nn.Module], hook) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in hooked]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _noised(model, case: Case):
    """All rows but the first see the subject's embeddings with noise."""
    columns = slice(*case.span)

    def add(module, args, output):
        output[1:, columns] = (output[1:, columns].float() + case.noise).to(output.dtype)
        return output

    return _hooked([model.transformer.wte], add)


def _restored(restored: Sequence[torch.nn.Module], token: int):
    """All rows get the first one's output at the token."""

    def copy(module, args, output):
        value = output[0] if isinstance(output, tuple) else output
        value[1:, token] = value[0, token]
        return output

    return _hooked(restored, copy)
