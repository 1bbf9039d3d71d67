"""The δ that earlier edits of a sequence have found, at which later edits with the same target may begin.

`find_starts` chooses among them. An editor whose configuration sets `v_warm_start` keeps them in its state. Only edits
of earlier batches are looked at, so the order of a batch and its chunks do not matter.

Axes: N requests, E earlier edits, P = 1 or 2 vectors, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rome_jax.data.request import EditRequest

FindStarts = Callable[[int, np.ndarray, int], np.ndarray]
"""`find_starts` for the requests of a chunk: a function of layer, states, and P."""
MOST = 1000
"""Number of edits that are kept, the latest ones: 13 MB per layer of z for GPT-2 XL."""


@dataclasses.dataclass(frozen=True, eq=False)
class EarlierEdits:
    """Edits of earlier batches at one layer.

    Attributes:
      targets: The E targets.
      states: float32 [E, D] state or MLP output that δ was added to.
      deltas: float32 [E, P, D] δ.

    Raises:
      ValueError: If the arrays do not have these shapes.
    """

    targets: tuple[str, ...]
    states: np.ndarray
    deltas: np.ndarray

    def __post_init__(self):
        count, width = self.states.shape
        if len(self.targets) != count or self.deltas.shape != (count, self.parts, width):
            raise ValueError(
                f"{len(self.targets)} targets, states {list(self.states.shape)}, and deltas "
                f"{list(self.deltas.shape)} do not belong together: give one of each per edit."
            )

    @classmethod
    def none(cls, parts: int, width: int) -> EarlierEdits:
        """Returns no edits, with vectors of shape [P, D]."""
        return cls((), np.zeros((0, width), np.float32), np.zeros((0, parts, width), np.float32))

    @property
    def parts(self) -> int:
        """P."""
        return self.deltas.shape[1]

    def nearest(self, target: str, state: np.ndarray) -> np.ndarray | None:
        """Returns δ [P, D] of the edit of a target whose state has the largest cosine similarity with `state` [D].

        It is None if no edit has this target.
        """
        same = [index for index, other in enumerate(self.targets) if other == target]
        if not same:
            return None
        states = self.states[same]
        norms = np.maximum(np.linalg.norm(states, axis=1), np.finfo(np.float32).tiny)
        return self.deltas[same[int((states @ state / norms).argmax())]]

    def add(
        self, requests: Sequence[EditRequest], states: np.ndarray, deltas: np.ndarray
    ) -> EarlierEdits:
        """Adds the edits of a batch and keeps the latest `MOST`; `self` does not change.

        Args:
          requests: The N requests of the batch, whose order does not matter.
          states: float32 [N, D].
          deltas: float32 [N, P, D].
        """
        order = sorted(
            range(len(requests)), key=lambda i: (requests[i].target_text, requests[i].text)
        )
        targets = (*self.targets, *(requests[index].target_text for index in order))
        joined = (
            np.concatenate([old, np.asarray(new, np.float32)[order]])[-MOST:]
            for old, new in ((self.states, states), (self.deltas, deltas))
        )
        return EarlierEdits(targets[-MOST:], *joined)


def find_starts(
    earlier: Mapping[int, EarlierEdits],
    requests: Sequence[EditRequest],
    layer: int,
    states: np.ndarray,
    parts: int,
) -> np.ndarray:
    """Finds where the optimization of each request begins.

    Args:
      earlier: Edits of earlier batches by layer.
      requests: N requests.
      layer: Layer of z or v*.
      states: float32 [N, D] present states or MLP outputs there.
      parts: P.

    Returns:
      float32 [N, P, D] δ of the nearest earlier edit with the same target, and 0 without one.

    Raises:
      ValueError: If the earlier edits have another number of vectors or another width.

    Example:
      >>> found = {3: (np.array([[1.0, 0.0]]), np.array([[[3.0, 4.0]]]))}
      >>> find_starts(add_batch({}, [request], found), [request], 3, np.array([[1.0, 1.0]]), 1).tolist()
      [[[3.0, 4.0]]]
    """
    shape = (parts, states.shape[1])
    starts = np.zeros((len(requests), *shape), np.float32)
    if layer not in earlier:
        return starts
    if earlier[layer].deltas.shape[1:] != shape:
        raise ValueError(
            f"δ of earlier edits of layer {layer} has the shape {list(earlier[layer].deltas.shape[1:])}, and that of "
            f"this editor {list(shape)}: give the method and the model of the earlier batches."
        )
    for index, request in enumerate(requests):
        found = earlier[layer].nearest(request.target_text, states[index])
        if found is not None:
            starts[index] = found
    return starts


def add_batch(
    earlier: Mapping[int, EarlierEdits],
    requests: Sequence[EditRequest],
    found: Mapping[int, tuple[np.ndarray, np.ndarray]],
) -> dict[int, EarlierEdits]:
    """Adds what a batch has found, states [N, D] and deltas [N, P, D] by layer.

    Example:
      >>> found = {3: (np.ones((1, 2)), np.ones((1, 1, 2)))}
      >>> add_batch({}, [request], found)[3].targets
      (' tennis',)
    """
    return {
        layer: earlier.get(layer, EarlierEdits.none(*deltas.shape[1:])).add(
            requests, states, deltas
        )
        for layer, (states, deltas) in found.items()
    }
