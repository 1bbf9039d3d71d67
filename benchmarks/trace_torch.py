"""Straightforward causal tracing in PyTorch, as the baseline of the benchmarks: a Hugging Face model with hooks.

As in the original implementation, each restoration is one forward pass of a clean row and S rows with noise through all
layers, with the logits of all positions. The module shares with rome_jax only the names of the kinds ("hidden",
"mlp", "attn"), and it gets the same weights, tokens, and noise.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import torch


@dataclasses.dataclass(frozen=True)
class Case:
    """A prompt and its noise.

    Attributes:
      ids: int64 [T] tokens.
      span: (first, last + 1) token of the subject.
      noise: float32 [S, n, D] noise added to the embeddings of the subject's n tokens.
      window: Number of layers whose MLP or attention outputs are restored together.
    """

    ids: torch.Tensor
    span: tuple[int, int]
    noise: torch.Tensor
    window: int


@torch.inference_mode()
def sweep(model, case: Case, kind: str, places: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Computes the mean probability of the clean run's answer after each restoration.

    Args:
      model: A GPT2LMHeadModel or GPTJForCausalLM, on the device of the case.
      case: Prompt and noise.
      kind: States to restore: "hidden", "mlp", or "attn".
      places: N pairs (token, layer) to restore.

    Returns:
      float32 [N] probabilities, on the CPU.
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
    """Lists the modules whose outputs are restored together. Windows are cut at the ends of the model."""
    blocks = model.transformer.h
    if kind == "hidden":
        return [blocks[layer]]
    first, stop = max(0, layer - window // 2), min(len(blocks), layer + (window + 1) // 2)
    return [getattr(block, kind) for block in blocks[first:stop]]  # block.mlp or block.attn


@contextlib.contextmanager
def _hooked(hooked: Sequence[torch.nn.Module], hook) -> Iterator[None]:
    """Registers a forward hook on some modules inside a `with` block."""
    handles = [module.register_forward_hook(hook) for module in hooked]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _noised(model, case: Case):
    """Adds noise to the subject's embeddings in all rows except the first."""
    columns = slice(*case.span)

    def add(module, args, output):
        output[1:, columns] = (output[1:, columns].float() + case.noise).to(output.dtype)
        return output

    return _hooked([model.transformer.wte], add)


def _restored(restored: Sequence[torch.nn.Module], token: int):
    """Copies the first row's output at the token to all other rows."""

    def copy(module, args, output):
        value = output[0] if isinstance(output, tuple) else output
        value[1:, token] = value[0, token]
        return output

    return _hooked(restored, copy)
