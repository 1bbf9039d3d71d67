"""Peak memory of scoring and editing by model and batch size, as planned by the compiler.

    python -m benchmarks.evaluate_memory > memory.md                # a Markdown table
    python -m benchmarks.evaluate_memory --models gpt2-xl --batch_sizes 32 128 --dtypes bfloat16

The programs are compiled but not run, and no weights are created. The peak is that of the largest program: its
arguments (including the weights), its results, and its temporary buffers. It holds for the backend that compiles the
program, so measure the memory of a GPU on that GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import command_line, edit_case
from benchmarks.evaluate_cases import EDIT_LAYERS, make_records, make_templates, word_tokenizer
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.stages import inputs
from rome_jax.edit.stages.key import layer_states
from rome_jax.edit.stages.value import optimize_value
from rome_jax.evaluation import scoring
from rome_jax.evaluation.datasets import CounterFactRecord, DatasetName
from rome_jax.evaluation.evaluate import evaluate_records
from rome_jax.models import transformer
from rome_jax.models.families import PRESETS
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate
from rome_jax.models.registry import LanguageModel

GIB = 2**30


def shapes_of_model(name: str, dtype: str) -> LanguageModel:
    """Builds a preset model whose params are only shapes, with the tokenizer of the random records.

    Args:
      name: A key of `PRESETS`.
      dtype: Dtype of the params, such as "bfloat16".

    Example:
      >>> shapes_of_model("gpt2", "bfloat16").params["wte"]["embedding"].shape
      (50257, 768)
    """
    config = PRESETS[name]
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), transformer.param_shapes(config)
    )
    return LanguageModel(name, config, params, word_tokenizer(config.vocab_size), "shapes alone")


def peak(compiled: jax.stages.Compiled) -> int:
    """Returns the peak memory of a program in bytes: its arguments, results, and temporary buffers."""
    plan = compiled.memory_analysis()
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        + plan.temp_size_in_bytes
        - plan.alias_size_in_bytes
    )


def scoring_peak(model: LanguageModel, records: Sequence[CounterFactRecord], layer: int) -> int:
    """Returns the peak memory, in bytes, of scoring N records, each under its own ROME edit.

    Args:
      model: Model whose params are shapes.
      records: N records that are scored together.
      layer: Edit layer.
    """
    config = model.config
    update = LowRankUpdate(
        Leaf.MLP_DOWN,
        jnp.full(len(records), layer),
        jnp.zeros((len(records), config.mlp_width, 1)),
        jnp.zeros((len(records), config.width, 1)),
    )

    def unscored(params, config, batch, read, at, tokens, deltas):
        return np.zeros(tokens.shape), np.zeros(tokens.shape, bool)

    program = scoring._score
    with mock.patch.object(scoring, "_score", side_effect=unscored) as calls:
        evaluate_records(model, DatasetName.CF, records, Delta((update,)))
    return max(peak(program.lower(*call.args).compile()) for call in calls.call_args_list)


def edit_peak(model: LanguageModel, records: Sequence[CounterFactRecord], layer: int) -> int:
    """Returns the peak memory, in bytes, of optimizing v* for N records at once, the largest program of an edit.

    Args:
      model: Model whose params are shapes.
      records: N records of one chunk.
      layer: Edit layer.
    """
    config, rome_config = model.config, ROMEConfig((layer,), v_num_grad_steps=edit_case.STEPS)
    tokens = inputs.tokenize_requests(
        model.tokenizer,
        [record.request for record in records],
        make_templates(config.vocab_size),
        rome_config.fact_token,
        config.context_length,
    )
    states = jax.eval_shape(
        lambda params: layer_states(
            params, config, tokens.batch, tokens.fact, layer, shared=tokens.shared
        ),
        model.params,
    )

    @jax.jit
    def find(params, tokens, hidden, value):
        return optimize_value(
            params, config, rome_config, tokens, hidden, value, layer, tokens.shared
        )

    value = jax.ShapeDtypeStruct((len(records), config.width), jnp.float32)
    return peak(find.lower(model.params, tokens, states.hidden, value).compile())


def main() -> None:
    """Prints the table row by row, each as soon as it is measured."""
    parser = command_line.parser(__doc__.split("\n")[0])
    sizes = {name.split("/")[-1]: name for name in EDIT_LAYERS}
    parser.add_argument("--models", nargs="+", choices=sizes, default=list(sizes))
    parser.add_argument(
        "--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"]
    )
    parser.add_argument(
        "--batch_sizes",
        nargs="+",
        type=int,
        default=[1, 8, 32, 64],
        help="Numbers of cases scored together, one column each.",
    )
    parser.add_argument(
        "--chunk_size", type=int, default=8, help="Number of edits optimized together."
    )
    arguments = parser.parse_args()
    if (least := min(*arguments.batch_sizes, arguments.chunk_size)) < 1:
        parser.error(f"--batch_sizes and --chunk_size must be at least 1, not {least}.")

    headers = ["model", "dtype", "weights"]
    headers += [f"scoring {size} case{'s' * (size > 1)}" for size in arguments.batch_sizes]
    headers.append(f"{arguments.chunk_size} edits")
    print(f"GiB, programs of the {jax.default_backend()} backend\n")
    print("| " + " | ".join(headers) + " |")
    print("|" + "---|" * len(headers), flush=True)
    for name in arguments.models:
        for dtype in arguments.dtypes:
            model, layer = shapes_of_model(sizes[name], dtype), EDIT_LAYERS[sizes[name]]
            records = functools.partial(make_records, vocab_size=model.config.vocab_size)
            weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.params))
            peaks = [scoring_peak(model, records(size), layer) for size in arguments.batch_sizes]
            peaks.append(edit_peak(model, records(arguments.chunk_size), layer))
            cells = [name, dtype, *(f"{size / GIB:.2f}" for size in (weights, *peaks))]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
