"""Requests in chunks of one size, so that one compiled program serves any number of them, and what the methods check
before they begin.

    lengths ─► order, size ─► parts ─► function of each ─► one pytree, in the order of the requests
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from rome_jax.data.request import SLOT, EditRequest
from rome_jax.edit.config import Hyperparameters
from rome_jax.files.progress import tqdm
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.files import SecondMoment

Item = TypeVar("Item")
Part = TypeVar("Part")


@dataclasses.dataclass(frozen=True)
class RequestChunks:
    """A split of N items.

    Attributes:
      order: int [N], the items' indices, those of like length together.
      size: of every chunk.
    """

    order: np.ndarray
    size: int

    @classmethod
    def of(cls, lengths: Sequence[int], chunk_size: int) -> RequestChunks:
        """The split of items that have these lengths; equal lengths keep their order."""
        order = np.argsort(lengths, kind="stable")
        return cls(order, min(chunk_size, len(order)))

    def split(self, items: Sequence[Item]) -> list[list[Item]]:
        """The items of each chunk. A short last chunk repeats its own: one shape, one program.

        Example:
          >>> Chunks.of([5, 1, 3], 2).split("abc")
          [['b', 'c'], ['a', 'a']]
        """
        return [
            [items[index] for index in np.resize(chunk, self.size)] for chunk in self._indices()
        ]

    def map(
        self,
        function: Callable[[Part], Any],
        parts: Sequence[Part],
        label: str,
        progress: bool = False,
    ) -> Any:
        """A function of every chunk, as one pytree of all items.

        Args:
          function: of one chunk; its result is a pytree whose leaves have the chunk's items as their leading axis.
          parts: what it is called with: one a chunk, such as `split` gives.
          label: of the progress bar.
          progress: show one.

        Returns:
          The results joined, in the order of the items; without those that only filled the last chunk. What the
          function gives as numpy arrays stays on the host.
        """
        results = []
        with tqdm(
            total=len(self.order),
            unit="edit",
            desc=label,
            leave=None,  # inside another bar it vanishes when it is done
            disable=not progress,
        ) as bar:
            for chunk, part in zip(self._indices(), parts, strict=True):
                kept = operator.itemgetter(slice(len(chunk)))
                results.append(jax.tree.map(kept, function(part)))
                bar.update(len(chunk))
        back = np.argsort(self.order)
        return jax.tree.map(lambda *leaves: _concatenate(leaves)[back], *results)

    def _indices(self) -> list[np.ndarray]:
        return [
            self.order[begin : begin + self.size] for begin in range(0, len(self.order), self.size)
        ]


def _concatenate(leaves: Sequence[np.ndarray | jax.Array]) -> np.ndarray | jax.Array:
    return leaves[0].__array_namespace__().concat(leaves)


def map_chunks(
    function: Callable[[list[Item]], Any],
    items: Sequence[Item],
    lengths: Sequence[int],
    chunk_size: int,
    label: str,
    progress: bool = False,
) -> Any:
    """A function of `chunk_size` items, or all if they are fewer, for any number of them.

    Args:
      function: of a list of items, always of the same length; gives a pytree whose leaves have them as leading axis.
      items: such as requests.
      lengths: by which they are sorted: those of like length share a chunk, and so have little padding.
      chunk_size: at least 1.
      label: of the progress bar.
      progress: show one.

    Returns:
      The pytree of all items, in their order.

    Example:
      >>> map_chunks(lambda items: np.array(items) ** 2, [3, 1, 2], [3, 1, 2], 2, "squares").tolist()
      [9, 1, 4]
    """
    chunks = RequestChunks.of(lengths, chunk_size)
    return chunks.map(function, chunks.split(items), label, progress)


def behind_subject(request: EditRequest) -> int:
    """Characters of prompt and target from the subject's end on: what a step of an optimisation at the subject runs."""
    return len(request.prompt) - request.prompt.index(SLOT) + len(request.target_new)


def check_requests(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: Hyperparameters,
    chunk_size: int = 1,
) -> None:
    """What every method asks of its arguments.

    Raises:
      ValueError: no requests, a chunk_size below 1, or a layer that the model does not have.
    """
    if not requests:
        raise ValueError("requests is empty: give at least one EditRequest.")
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1.")
    for layer in config.layers:
        model.config.check_layer(layer, "layers")


def check_moments(layers: Sequence[int], second_moments: Mapping[int, SecondMoment] | None) -> None:
    """What a method asks that weighs keys by their second moment.

    Raises:
      ValueError: a layer without one.
    """
    for layer in layers:
        if layer not in (second_moments or {}):
            raise ValueError(
                f"second_moments has no second moment of layer {layer}: collect it (python -m eval.layer_stats) "
                "or set mom2_adjustment=False."
            )
