"""Chunks of requests, and the checks that all methods share.

Every chunk has the same size, so that one compiled program serves any number of requests:

    lengths -> order and size -> chunks -> function of each chunk -> one pytree, in the order of the requests
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
from rome_jax.files.checked import Count, check, shown
from rome_jax.files.progress import tqdm
from rome_jax.models.interventions import check_leaves
from rome_jax.models.registry import LanguageModel
from rome_jax.moments import checks
from rome_jax.moments.null_space import NullSpace
from rome_jax.moments.second_moment import SecondMoment

Item = TypeVar("Item")
Part = TypeVar("Part")
Moment = TypeVar("Moment")


@dataclasses.dataclass(frozen=True)
class RequestChunks:
    """A split of N items into chunks of equal size.

    Attributes:
      order: int [N] indices of the items, sorted by length.
      size: Number of items in every chunk.
    """

    order: np.ndarray
    size: int

    @classmethod
    def of(cls, lengths: Sequence[int], chunk_size: int) -> RequestChunks:
        """Splits items by length. Items of equal length keep their order.

        Args:
          lengths: Length of each item.
          chunk_size: Largest size of a chunk.

        Raises:
          ValueError: If `chunk_size` is not a whole number of at least 1.
        """
        order = np.argsort(lengths, kind="stable")
        return cls(order, min(check(Count, chunk_size, "chunk_size"), len(order)))

    def split(self, items: Sequence[Item]) -> list[list[Item]]:
        """Returns the items of each chunk. A short last chunk repeats its items, so that all shapes are the same.

        Example:
          >>> RequestChunks.of([5, 1, 3], 2).split("abc")
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
        """Calls a function for every chunk and joins the results.

        Args:
          function: Function of one part. It returns a pytree with the items of the chunk as leading axis.
          parts: Argument of the function for each chunk, such as the lists that `split` returns.
          label: Label of the progress bar.
          progress: Whether to show a progress bar.

        Returns:
          One pytree with all items as leading axis, in their original order. The items that filled up the last chunk
          are dropped. Leaves that the function returns as numpy arrays stay on the host.
        """
        results = []
        with tqdm(
            total=len(self.order),
            unit="edit",
            desc=label,
            leave=None,  # a bar inside another one disappears when it is done
            disable=not progress,
        ) as bar:
            for chunk, part in zip(self._indices(), parts, strict=True):
                kept = operator.itemgetter(slice(len(chunk)))
                results.append(jax.tree.map(kept, function(part)))
                bar.update(len(chunk))
        back = np.argsort(self.order)
        return jax.tree.map(lambda *leaves: _concatenate(leaves)[back], *results)

    def _indices(self) -> list[np.ndarray]:
        """Returns the indices of the items of each chunk; the last chunk may be short."""
        return [
            self.order[begin : begin + self.size] for begin in range(0, len(self.order), self.size)
        ]


def _concatenate(leaves: Sequence[np.ndarray | jax.Array]) -> np.ndarray | jax.Array:
    """Joins arrays where they are: numpy arrays on the host, and jax arrays on the device."""
    return leaves[0].__array_namespace__().concat(leaves)


def map_chunks(
    function: Callable[[list[Item]], Any],
    items: Sequence[Item],
    lengths: Sequence[int],
    chunk_size: int,
    label: str,
    progress: bool = False,
) -> Any:
    """Calls a function for chunks of items and joins the results.

    Args:
      function: Function of a list of `chunk_size` items, or of all items if there are fewer. It returns a pytree
        with the items as leading axis.
      items: Items, such as requests.
      lengths: Length of each item. Items of similar length share a chunk, which keeps the padding short.
      chunk_size: Number of items per chunk, at least 1.
      label: Label of the progress bar.
      progress: Whether to show a progress bar.

    Returns:
      One pytree with all items as leading axis, in their original order.

    Example:
      >>> map_chunks(lambda items: np.array(items) ** 2, [3, 1, 2], [3, 1, 2], 2, "squares").tolist()
      [9, 1, 4]
    """
    chunks = RequestChunks.of(lengths, chunk_size)
    return chunks.map(function, chunks.split(items), label, progress)


def length_from_subject(request: EditRequest) -> int:
    """Counts the characters from the subject's slot to the end of the target.

    A step of an optimization at the subject runs about this much of the text, so chunks are formed by this length.

    Example:
      >>> length_from_subject(request)  # "{} plays the sport of" and "tennis"
      27
    """
    return len(request.prompt) - request.prompt.index(SLOT) + len(request.target_new)


def check_requests(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    config: Hyperparameters,
    chunk_size: int = 1,
) -> None:
    """Checks the arguments that all methods share.

    Raises:
      ValueError: If there are no requests, one is something else, `chunk_size` is not a whole number of at least 1, or
        the model does not have a layer or weight.
    """
    if not requests:
        raise ValueError("requests is empty: give at least one EditRequest.")
    for index, request in enumerate(requests):
        if not isinstance(request, EditRequest):
            raise ValueError(f"requests[{index}]={shown(request)}: give an EditRequest.")
    check_config(model, config, chunk_size)


def check_config(model: LanguageModel, config: Hyperparameters, chunk_size: int = 1) -> None:
    """Checks what a method knows before its first request.

    Raises:
      ValueError: If `chunk_size` is not a whole number of at least 1, or the model does not have a layer or weight.
    """
    check(Count, chunk_size, "chunk_size")
    for layer in config.layers:
        model.config.check_layer(layer, "layers")
    check_leaves(model.config, getattr(config, "leaves", ()), "the configuration")


def check_moments(
    model: LanguageModel, config: Hyperparameters, second_moments: Mapping[int, Any] | None
) -> None:
    """Checks that every layer that an edit changes has a second moment of this model, if the configuration uses them.

    Raises:
      ValueError: If a layer has none, or one that is of another model, layer or width, or is not positive definite.
    """
    found = {layer: moment_of(config, second_moments, layer) for layer in config.written_layers}
    checked = (SecondMoment, NullSpace)  # not factors
    checks.check(
        {layer: moment for layer, moment in found.items() if isinstance(moment, checked)},
        model,
        null_spaces=config.takes_null_spaces,
    )


def moment_of(
    config: Hyperparameters, second_moments: Mapping[int, Moment] | None, layer: int
) -> Moment | None:
    """Returns the second moment of a layer, or None if the configuration does not use second moments.

    Raises:
      ValueError: If the layer has none.

    Example:
      >>> moment_of(config, {0: "C of layer 0"}, 0)
      'C of layer 0'
    """
    if not config.needs_second_moments:
        return None
    if second_moments is None or layer not in second_moments:
        raise ValueError(
            f"second_moments has no second moment of layer {layer}: collect it (python -m eval.layer_stats) "
            "or set mom2_adjustment=False."
        )
    return second_moments[layer]
