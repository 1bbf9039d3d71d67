"""The two sides of `benchmarks.evaluate`: the same model, edits, and prompts in rome_jax and in PyTorch."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from typing import Any
from unittest import mock

import jax
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks import edit_case, evaluate_cases, evaluate_torch, rome_torch
from benchmarks.timing import timed
from benchmarks.timing_torch import torch_device
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.methods import rome
from rome_jax.edit.stages import inputs
from rome_jax.evaluation import counterfact, scoring
from rome_jax.evaluation.datasets import CounterFactRecord, DatasetName
from rome_jax.evaluation.evaluate import evaluate_records
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.huggingface import save_params
from rome_jax.models.registry import LanguageModel
from rome_jax.moments.second_moment import SecondMoment

_KINDS = ("rewrite", "paraphrase", "neighborhood", "attribute")
_TARGETS = ("target_new", "target_true")


@dataclasses.dataclass(frozen=True)
class Stages:
    """Seconds or floating-point operations of the two stages of an evaluation.

    Attributes:
      edit: Amount for computing the edits.
      scoring: Amount for scoring the prompts before and after the edits.

    Example:
      >>> (Stages(6.0, 2.0) + Stages(0.0, 2.0)) / 2
      Stages(edit=3.0, scoring=2.0)
    """

    edit: float = 0.0
    scoring: float = 0.0

    def __add__(self, other: Stages) -> Stages:
        return Stages(self.edit + other.edit, self.scoring + other.scoring)

    def __truediv__(self, count: int) -> Stages:
        return Stages(self.edit / count, self.scoring / count)

    @property
    def total(self) -> float:
        """Sum of both stages."""
        return self.edit + self.scoring


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Results, time, and work of N evaluated records.

    Attributes:
      before, after: float [N, P, 2] NLLs of both targets after each of P prompts, without and with the edit.
      seconds: Seconds for all N records.
      work: Floating-point operations for all N records. Only matrix products with weights are counted, and padding is
        included.
    """

    before: np.ndarray
    after: np.ndarray
    seconds: Stages
    work: Stages

    @classmethod
    def joined(cls, runs: Sequence[Run]) -> Run:
        """Concatenates the records of several runs and adds up their time and work."""
        return cls(
            np.concatenate([run.before for run in runs]),
            np.concatenate([run.after for run in runs]),
            sum((run.seconds for run in runs), Stages()),
            sum((run.work for run in runs), Stages()),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """A model with random weights on both sides, and the settings of the edits.

    Attributes:
      model: The model in rome_jax.
      config: Hyperparameters of the edits.
      options: Other arguments of `rome.compute_deltas`.
      inverse: [F, F] inverse second moment C⁻¹ for PyTorch.
      twin: Hugging Face model with the same weights and dtype.
    """

    model: LanguageModel
    config: ROMEConfig
    options: dict[str, Any]
    inverse: np.ndarray
    twin: torch.nn.Module

    @classmethod
    def of(cls, params: forward.Params, config: ModelConfig, layer: int, chunk_size: int) -> Setup:
        """Places a model and its twin on the devices of jax and torch, and draws a second moment for both sides.

        Args:
          params: Weights of the model.
          config: Configuration of the model.
          layer: Edit layer.
          chunk_size: Number of requests that rome_jax optimizes together.
        """
        with tempfile.TemporaryDirectory() as directory:
            save_params(directory, params, config)
            twin = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
        tokenizer = evaluate_cases.word_tokenizer(config.vocab_size)
        root = np.random.default_rng(1).standard_normal((config.mlp_width,) * 2)
        matrix = root @ root.T / len(root) + np.eye(len(root))
        moment = SecondMoment(matrix, len(root))
        moment.solve(root[0])  # factors C outside the timed code, once per layer
        return cls(
            LanguageModel("", config, params, tokenizer, source="random weights"),
            ROMEConfig((layer,), v_num_grad_steps=edit_case.STEPS, loss_threshold=0.0),
            {
                "second_moments": {layer: moment},
                "templates": evaluate_cases.make_templates(config.vocab_size),
                "chunk_size": chunk_size,
            },
            np.linalg.inv(matrix),
            twin.to(torch_device()).eval().requires_grad_(False),
        )

    def run_jax(self, records: Sequence[CounterFactRecord]) -> Run:
        """Edits and scores N records together in rome_jax."""
        requests = [record.request for record in records]

        def compute():
            deltas = rome.compute_deltas(self.model, requests, self.config, **self.options)
            return jax.block_until_ready(deltas)

        def score(deltas):
            return evaluate_records(self.model, DatasetName.CF, records, deltas)

        # The arguments of these two functions give the shapes that ran, from which the work is counted.
        with (
            mock.patch.object(rome, "compute_from_inputs", wraps=rome.compute_from_inputs) as edits,
            mock.patch.object(scoring, "_score", wraps=scoring._score) as scores,
        ):
            edit_seconds, deltas = timed(compute)
            scoring_seconds, (before, after) = timed(lambda: (score(None), score(deltas)))
        config = self.model.config
        work = Stages(
            sum(
                tokens.num_requests
                * edit_case.count_work(config, tokens, *self.config.layers).rome_jax
                for _, _, tokens, *_ in (call.args for call in edits.call_args_list)
            ),
            sum(
                forward_work(config, batch.ids.size, read.size, len(places))
                for _, _, batch, read, places, *_ in (call.args for call in scores.call_args_list)
            ),
        )
        return Run(_nlls(before), _nlls(after), Stages(edit_seconds, scoring_seconds), work)

    def run_torch(self, record: CounterFactRecord) -> Run:
        """Edits and scores one record in PyTorch. Tokenization is not timed."""
        config, device = self.model.config, torch_device()
        tokens = inputs.tokenize_requests(
            self.model.tokenizer,
            [record.request],
            self.options["templates"],
            self.config.fact_token,
            config.context_length,
        )
        parts = edit_case.first_case(tokens, self.config)
        case = rome_torch.Case.of(parts, self.inverse, device)
        queries = counterfact.plan(self.model, [record]).queries
        pairs = [(query.prompt, target) for query in queries for target in query.targets]
        rows = evaluate_torch.Rows.of(pairs, device)
        result = evaluate_torch.evaluate(self.twin, case, rows)
        work = Stages(
            edit_case.count_work(config, tokens, *self.config.layers).torch,
            2 * forward_work(config, *[rows.ids.numel()] * 3),
        )
        before, after = (x.reshape(1, -1, len(_TARGETS)) for x in (result.before, result.after))
        return Run(before, after, Stages(result.edit, result.scoring), work)


def forward_work(config: ModelConfig, tokens: int, read: int, places: int) -> float:
    """Counts the floating-point operations of a forward pass, two per weight and token.

    Args:
      config: Configuration of the model.
      tokens: Number of tokens that run.
      read: Number of tokens for which the whole last layer runs. It computes only keys and values for the others.
      places: Number of positions for which logits are computed.

    Example:
      >>> from rome_jax.models.families import PRESETS
      >>> round(forward_work(PRESETS["gpt2"], 1, 1, 0) / 2e6, 1)  # million weights in the layers
      84.9
    """
    attention, mlp = 2 * 4 * config.width**2, 2 * 2 * config.width * config.mlp_width
    # All tokens project queries, keys, and values in the last layer; the tokens that are read project them again.
    last = read * (attention + mlp) + (tokens * attention * 3 / 4 if read < tokens else 0)
    head = 2 * config.width * config.vocab_size
    return tokens * (config.num_layers - 1) * (attention + mlp) + last + places * head


def _nlls(results: Sequence[dict[str, Any]]) -> np.ndarray:
    """Returns the NLLs [N, P, 2] of N results, with the prompts in the order of `counterfact.plan`."""
    return np.array(
        [
            [
                [nll[target] for target in _TARGETS]
                for kind in _KINDS
                for nll in result[f"{kind}_prompts_probs"]
            ]
            for result in results
        ]
    )
