"""The two sides of `benchmarks.evaluate`: one model, the same edits and prompts, in rome_jax and in PyTorch."""

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
from rome_jax.moments.files import SecondMoment

_KINDS = ("rewrite", "paraphrase", "neighborhood", "attribute")
_TARGETS = ("target_new", "target_true")


@dataclasses.dataclass(frozen=True)
class Stages:
    """Seconds, or floating-point operations, of the two stages of an evaluation.

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
        """Both together."""
        return self.edit + self.scoring


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """N evaluated records.

    Attributes:
      before, after: float [N, P, 2], the NLLs of both targets behind each of P prompts, without and with the edit.
      seconds: of all N.
      work: floating-point operations of all N, of products with weights alone, padding counted in.
    """

    before: np.ndarray
    after: np.ndarray
    seconds: Stages
    work: Stages

    @classmethod
    def joined(cls, runs: Sequence[Run]) -> Run:
        """Several runs as one."""
        return cls(
            np.concatenate([run.before for run in runs]),
            np.concatenate([run.after for run in runs]),
            sum((run.seconds for run in runs), Stages()),
            sum((run.work for run in runs), Stages()),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """What both sides evaluate.

    Attributes:
      model: with random weights.
      config: of the edit.
      options: further arguments of `rome.compute_deltas`.
      inverse: [F, F], C⁻¹, which PyTorch multiplies with.
      twin: the Hugging Face model with the same weights, in their dtype.
    """

    model: LanguageModel
    config: ROMEConfig
    options: dict[str, Any]
    inverse: np.ndarray
    twin: torch.nn.Module

    @classmethod
    def of(cls, params: forward.Params, config: ModelConfig, layer: int, chunk_size: int) -> Setup:
        """Puts a model and its twin where jax and torch compute, and factors a random second moment for both.

        Example:
          >>> Setup.of(params, config, layer=5, chunk_size=8).run_jax(records).after.shape  # doctest: +SKIP
          (64, 23, 2)
        """
        with tempfile.TemporaryDirectory() as directory:
            save_params(directory, params, config)
            twin = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
        tokenizer = evaluate_cases.word_tokenizer(config.vocab_size)
        root = np.random.default_rng(1).standard_normal((config.mlp_width,) * 2)
        matrix = root @ root.T / len(root) + np.eye(len(root))
        moment = SecondMoment(matrix, len(root))
        moment.solve(root[0])  # C is factored once a layer; so is its inverse below
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
        """Evaluates N records together."""
        requests = [record.request for record in records]

        def compute():
            deltas = rome.compute_deltas(self.model, requests, self.config, **self.options)
            return jax.block_until_ready(deltas)

        def score(deltas):
            return evaluate_records(self.model, DatasetName.CF, records, deltas)

        # The shapes that ran are those that the two were called with.
        with (
            mock.patch.object(rome, "compute_from_inputs", wraps=rome.compute_from_inputs) as edits,
            mock.patch.object(scoring, "_score", wraps=scoring._score) as scores,
        ):
            edit_seconds, deltas = timed(compute)
            scoring_seconds, (before, after) = timed(lambda: (score(None), score(deltas)))
        config = self.model.config
        work = Stages(
            sum(
                len(tokens.lookup)
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
        """Evaluates one record; tokenising is not timed."""
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
    """Floating-point operations of a forward pass: two a weight and token, and two a weight of the head and place.

    Args:
      config: of the model.
      tokens: that run.
      read: that the last layer runs for; of the others it has keys and values alone.
      places: whose logits are computed.

    Example:
      >>> forward_work(PRESETS["gpt2"], 1, 1, 0) / 2e6  # million weights  # doctest: +SKIP
      84.9
    """
    attention, mlp = 2 * 4 * config.width**2, 2 * 2 * config.width * config.mlp_width
    # Read columns project queries, keys and values a second time, as the others do.
    last = read * (attention + mlp) + (tokens * attention * 3 / 4 if read < tokens else 0)
    head = 2 * config.width * config.vocab_size
    return tokens * (config.num_layers - 1) * (attention + mlp) + last + places * head


def _nlls(results: Sequence[dict[str, Any]]) -> np.ndarray:
    """Results of N records -> [N, P, 2], the prompts in the order of a plan."""
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
