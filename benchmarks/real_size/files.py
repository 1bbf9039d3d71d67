"""The files of a run: a random model in the Hugging Face format, and a second moment in the library's format."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.evaluate_cases import word_tokenizer
from benchmarks.gpu.moment import second_moment_matrix
from benchmarks.real_size.run import Run
from rome_jax.files.safetensors_io import write
from rome_jax.models.config import ModelConfig
from rome_jax.models.families import to_hf
from rome_jax.models.huggingface import checkpoint_shapes
from rome_jax.moments.files import file_of, save
from rome_jax.moments.second_moment import SecondMoment

_SHARD = 2 << 30  # bytes
_SPREAD = 0.02  # standard deviation of the kernels and embeddings
_TOKENS_PER_WIDTH = 100  # tokens that the second moment claims to average, per dimension


def write_files(run: Run) -> None:
    """Writes the files of a run that do not exist yet."""
    config = run.size.config
    if not (run.checkpoint / "config.json").is_file():
        run.checkpoint.mkdir(parents=True, exist_ok=True)
        word_tokenizer(config.vocab_size).save_pretrained(run.checkpoint)
        write_checkpoint(run.checkpoint, config, run.dtype)
    if not file_of(run.statistics, run.size.layer).is_file():
        matrix = second_moment_matrix(config.mlp_width)
        moment = SecondMoment(matrix, _TOKENS_PER_WIDTH * len(matrix))
        save(run.statistics, {run.size.layer: moment})


def write_checkpoint(directory: Path, config: ModelConfig, dtype: str) -> None:
    """Writes a sharded checkpoint with random weights, one tensor at a time; config.json comes last.

    Args:
      directory: Existing folder of the checkpoint.
      config: Configuration of the model.
      dtype: Dtype of the weights.
    """
    import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)

    stored = np.dtype(dtype)
    shards: list[dict] = [{}]
    filled = 0
    for name, shape in checkpoint_shapes(config).items():
        size = math.prod(shape) * stored.itemsize
        if filled and filled + size > _SHARD:
            shards.append({})
            filled = 0
        shards[-1][name] = (stored, shape)
        filled += size
    generator, weight_map = np.random.default_rng(0), {}
    for number, specs in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write(directory / file, specs, _tensors(specs, generator), {"format": "pt"})
        weight_map |= dict.fromkeys(specs, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(to_hf(config) | {"dtype": dtype}))


def _tensors(specs: dict, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields random matrices, biases of 0, and scales of 1."""
    for name, (dtype, shape) in specs.items():
        if len(shape) > 1:
            yield (_SPREAD * generator.standard_normal(shape, np.float32)).astype(dtype)
        else:
            yield np.full(shape, float(name.endswith("weight")), dtype)
