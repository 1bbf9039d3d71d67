"""MEMIT's algorithm in numpy and float64, with the parts of AlphaEdit, ENCORE, BLUE, NAS and RECT, without the library.

An update finds z of each request, and gives each layer its share of the residual by the closed form with explicit
inverses: ΔW = A⁻¹ K (Kᵀ A⁻¹ K + I)⁻¹ Rᵀ. Only the tokenizer and the classes of hyperparameters are the library's.

Axes: N requests, K context templates, T tokens, M target tokens, D width, F MLP width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rome_jax.data.request import EditRequest
from rome_jax.edit.spread_config import SpreadConfig
from rome_jax.models.config import ModelConfig
from rome_jax.models.forward import Params
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.second_moment import SecondMoment
from tests.edit.methods.plain_gpt2 import Adam, Layer, embed, float64, log_softmax, norm, run_layers

_EPSILON = 1e-30  # length of the imaginary steps


class Row(NamedTuple):
    """The tokens of a text, the position of the subject's last token, and the positions that the loss reads."""

    ids: list[int]
    fact: int
    read: list[int]


@dataclasses.dataclass(frozen=True)
class Fact:
    """The token rows of a request: one in each context, the bare prompt first, and one of "{subject} is a"."""

    contexts: list[Row]
    essence: Row
    target: list[int]

    @classmethod
    def of(cls, tokenizer, request: EditRequest, templates: Sequence[str]) -> Fact:
        def tokens(text: str) -> list[int]:
            return tokenizer(text)["input_ids"]

        def fact(text: str) -> int:
            """The number of tokens before the subject's last one; the token after the subject begins with a space."""
            return len(tokens(text[: text.index(request.subject) + len(request.subject)])) - 1

        target, contexts = tokens(request.target_text), []
        for template in templates:
            text = template.replace("{}", request.text)
            prompt = tokens(text)
            read = list(range(len(prompt) - 1, len(prompt) + len(target) - 1))
            contexts.append(Row(prompt + target, fact(text), read))
        essence = f"{request.subject} is a"
        return cls(contexts, Row(tokens(essence), fact(essence), [fact(essence)]), target)


class Scores(NamedTuple):
    """What the loss reads of a row: log-probabilities [M, V], and the slopes [D, M, V] of logits along δ's directions.

    The slopes are factored into those of the states after the final norm [D, M, D] and the embedding [V, D].
    """

    log_probs: np.ndarray
    normed: np.ndarray
    embedding: np.ndarray

    def slope(self, by_logits: np.ndarray) -> np.ndarray:
        """Returns the gradient [D] by δ of a loss with derivatives [M, V] by the logits."""
        return np.einsum("amd,md->a", self.normed, by_logits @ self.embedding)

    def nll(self, target: list[int]) -> tuple[float, np.ndarray]:
        """Returns the mean negative log-likelihood of the target, and its gradient."""
        chosen = range(len(target)), target
        by_logits = np.exp(self.log_probs)
        by_logits[chosen] -= 1
        return -self.log_probs[chosen].mean(), self.slope(by_logits / len(target))

    def divergence(self, initial: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns KL(current ‖ initial), and its gradient."""
        probs, change = np.exp(self.log_probs), self.log_probs - initial
        total = (probs * change).sum()
        return total, self.slope(probs * (change - total))


class Found(NamedTuple):
    """z [D] of a request, and the number of evaluations that it took."""

    z: np.ndarray
    steps: int


@dataclasses.dataclass
class Model:
    """A model whose weights the updates change in place."""

    params: Params
    config: ModelConfig

    @property
    def kernel(self) -> np.ndarray:
        """The down-projections of all layers, [L, F, D]."""
        return self.params["blocks"]["mlp"]["down"]["kernel"]

    def layers(self, row: Row, last: int) -> dict[int, Layer]:
        """Runs a row up to a layer."""
        return run_layers(self.params, self.config, embed(self.params, row.ids), range(last + 1))

    def key(self, fact: Fact, layer: int) -> np.ndarray:
        """Returns the mean key [F]; the bare prompt has half of the weight."""
        keys = [self.layers(row, layer)[layer].keys[row.fact] for row in fact.contexts]
        return (keys[0] + np.mean(keys[1:], 0)) / 2 if keys[1:] else keys[0]

    def keys(self, facts: Sequence[Fact], layer: int) -> np.ndarray:
        """Returns the mean keys [N, F]."""
        return np.stack([self.key(fact, layer) for fact in facts])

    def bare(self, facts: Sequence[Fact], layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the MLP's outputs and the states after a layer at the facts' tokens in the bare prompts, [N, D]."""
        found = [self.layers(fact.contexts[0], layer)[layer] for fact in facts]
        places = [fact.contexts[0].fact for fact in facts]
        outputs = np.stack([own.outputs[at] for own, at in zip(found, places, strict=True)])
        return outputs, np.stack([own.hidden[at] for own, at in zip(found, places, strict=True)])

    def find_z(self, fact: Fact, config: SpreadConfig, last: int) -> Found:
        """Minimizes the loss of one request by Adam in a ball, from δ = 0."""
        rows = [*fact.contexts, fact.essence]
        hidden = [self.layers(row, last)[last].hidden for row in rows]
        h = hidden[0][fact.contexts[0].fact]
        size, delta, adam = np.linalg.norm(h), np.zeros_like(h), Adam(config.v_lr)
        initial, right = None, 0
        for step in range(1, config.v_num_grad_steps + 1):
            *contexts, essence = (
                self._scores(own, row, last, delta) for own, row in zip(hidden, rows, strict=True)
            )
            initial = essence.log_probs if initial is None else initial
            nll, by_nll = zip(*(own.nll(fact.target) for own in contexts), strict=True)
            kl, by_kl = essence.divergence(initial)
            length, decay = np.linalg.norm(delta), config.v_weight_decay / size**2
            loss = np.mean(nll) + config.kl_factor * kl + decay * length

            answers = [(own.log_probs.argmax(-1) == fact.target).all() for own in contexts]
            right += all(answers[1:] or answers)
            stops = config.argmax_evaluations and right >= config.argmax_evaluations
            if loss < config.loss_threshold or stops or step == config.v_num_grad_steps:
                break
            gradient = np.mean(by_nll, 0) + config.kl_factor * by_kl
            gradient += decay * delta / (length or 1)
            delta = delta + adam.step(gradient)
            delta *= min(1, config.clamp_norm_factor * size / np.linalg.norm(delta))
        return Found(h + delta, step)

    def _scores(self, hidden: np.ndarray, row: Row, last: int, delta: np.ndarray) -> Scores:
        """Adds δ to the state at the fact's token and runs the layers above, with an imaginary step per direction."""
        moved = np.tile(hidden.astype(complex), (len(delta), 1, 1))  # [D, T, D]
        moved[:, row.fact] += delta + 1j * _EPSILON * np.eye(len(delta))
        above = range(last + 1, self.config.num_layers)
        for layer in run_layers(self.params, self.config, moved, above).values():
            moved = layer.hidden
        normed = norm(moved.take(row.read, axis=1), self.params["ln_f"], self.config)
        log_probs = log_softmax(self.params, normed[0].real)
        return Scores(log_probs, normed.imag / _EPSILON, self.params["wte"]["embedding"])


@dataclasses.dataclass
class Editor:
    """A method with its modifiers, and what it keeps from batch to batch.

    Attributes:
      model: The model, whose weights the updates change.
      tokenizer: The tokenizer of the library's model.
      config: Hyperparameters of MEMIT, AlphaEdit or ENCORE.
      moments: C [F, F] by layer.
      past: Keys of earlier batches [P, F] by layer.
      anchors: Norms of NAS by layer of z.
      dropped: Number of δ that NAS dropped.
    """

    model: Model
    tokenizer: Any
    config: SpreadConfig
    moments: Mapping[int, np.ndarray]
    past: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    anchors: dict[int, float] = dataclasses.field(default_factory=dict)
    dropped: int = 0

    @classmethod
    def of(
        cls, model: LanguageModel, config: SpreadConfig, moments: Mapping[int, SecondMoment]
    ) -> Editor:
        """Copies a model and its second moments."""
        own = {layer: np.asarray(moment.mean, np.float64) for layer, moment in moments.items()}
        return cls(Model(float64(model.params), model.config), model.tokenizer, config, own)

    def update(
        self, requests: Sequence[EditRequest], templates: Sequence[str]
    ) -> dict[int, np.ndarray]:
        """Writes a batch into the weights, and returns ΔW [F, D] by layer."""
        facts = [Fact.of(self.tokenizer, request, templates) for request in requests]
        config, modifiers = self.config, self.config.modifiers
        blue, layers = "BLUE" in modifiers, config.layers
        if blue:
            layers = (layers[0], layers[-1])
        if "NAS" in modifiers and not self.anchors:
            for layer in layers if blue else layers[-1:]:
                norms = np.linalg.norm(self.model.bare(facts, layer)[0], axis=1)
                self.anchors[layer] = trimmed_mean(norms)
        before = float64(self.model.params)
        changes, used = {}, {}
        for index, layer in enumerate(layers):
            last = layer if blue else layers[-1]
            outputs, h = self.model.bare(facts, last)
            if index == 0 or blue:
                z = np.stack([self.model.find_z(fact, config, last).z for fact in facts])
                if "NAS" in modifiers:
                    z = h + nas(outputs, z - h, self.anchors[last])
                    self.dropped += int((z == h).all(1).sum())
            keys, inverse = self.model.keys(facts, layer), self.inverse(layer)
            residual = (z - h) / (1 if blue else len(layers) - index)
            small = np.linalg.inv(keys @ inverse @ keys.T + np.eye(len(keys)))
            changes[layer] = inverse @ keys.T @ small @ residual
            used[layer] = keys
            self.model.kernel[layer] += changes[layer]
        if "RECT" in modifiers:
            self.model.params = before
            for layer, change in changes.items():
                changes[layer] = rect(change, self.model.kernel[layer])
                self.model.kernel[layer] += changes[layer]
        for layer in layers:
            # AlphaEdit keeps the keys of the weights that hold the batch, and ENCORE those that the solve used.
            keys = self.model.keys(facts, layer) if hasattr(config, "L2") else used[layer]
            self.past[layer] = np.concatenate([self.past.get(layer, keys[:0]), keys])
        return changes

    def inverse(self, layer: int) -> np.ndarray:
        """Returns A⁻¹ [F, F]."""
        config, moment = self.config, self.moments[layer]
        size = len(moment)
        past = self.past.get(layer, np.zeros((0, size)))
        if hasattr(config, "L2"):  # AlphaEdit
            values, vectors = np.linalg.eigh(moment)
            basis = vectors[:, values < config.nullspace_threshold]
            inner = basis.T @ past.T @ past @ basis + config.L2 * np.eye(basis.shape[1])
            return basis @ np.linalg.inv(inner) @ basis.T
        matrix = config.mom2_update_weight * moment
        if hasattr(config, "update_norm_lambda"):  # ENCORE
            matrix = matrix + past.T @ past + config.update_norm_lambda * np.eye(size)
        return np.linalg.inv(matrix)


def nas(outputs: np.ndarray, delta: np.ndarray, anchor: float) -> np.ndarray:
    """Returns the δ [N, D] with which outputs have the anchor's norm, or 0 where v + δ is longer than twice that."""
    rescaled = np.zeros_like(delta)
    for index, (output, own) in enumerate(zip(outputs, delta, strict=True)):
        norm = np.linalg.norm(output + own)
        if norm <= 2 * anchor:
            rescaled[index] = anchor * (output + own) / norm - output
    return rescaled


def trimmed_mean(norms: np.ndarray) -> float:
    """Returns the mean without the largest 5 %, rounded down to whole numbers of requests."""
    return float(np.sort(norms)[: len(norms) - len(norms) // 20].mean())


def rect(change: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Keeps the 40 % of a change that are largest relative to their weights."""
    relative = np.abs(change / weight)
    bound = np.sort(relative, axis=None)[int(0.6 * relative.size) - 1]
    return np.where(relative >= bound, change, 0)
