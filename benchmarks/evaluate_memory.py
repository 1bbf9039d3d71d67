"""Peak memory of scoring and of editing, by size of model and batch of cases, as the compiler plans it.

    python -m benchmarks.evaluate_memory > memory.md                # a Markdown table; nothing is run, no weights made
    python -m benchmarks.evaluate_memory --models gpt2-xl --batch_sizes 32 128 --dtypes bfloat16

The peak is that of the largest program: its arguments (the weights among them), its results and its temporaries. It
holds for the backend that compiles: where there is a GPU, run it there.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.flags import argparse_flags

from benchmarks import edit_case
from benchmarks.evaluate_cases import EDIT_LAYERS, make_records, make_templates, word_tokenizer
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.stages import inputs
from rome_jax.edit.stages.key import layer_states
from rome_jax.edit.stages.value import optimize_value
from rome_jax.evaluation import scoring
from rome_jax.evaluation.datasets import CounterFactRecord, DatasetName
from rome_jax.evaluation.evaluate import evaluate_records
from rome_jax.models import forward
from rome_jax.models.config import PRESETS
from rome_jax.models.interventions import Delta, Leaf, LowRankUpdate
from rome_jax.models.registry import LanguageModel

GIB = 2**30


def shapes_of_model(name: str, dtype: str) -> LanguageModel:
    """A preset whose params are shapes, with the tokenizer of the made-up cases.

    Example:
      >>> shapes_of_model("gpt2", "bfloat16").params["wte"]["embedding"].shape
      (50257, 768)
    """
    config = PRESETS[name]
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), forward.param_shapes(config)
    )
    return LanguageModel(name, config, params, word_tokenizer(config.vocab_size), "shapes alone")


def peak(compiled: jax.stages.Compiled) -> int:
    """Bytes that a program holds at once, at most: arguments, results and temporaries."""
    plan = compiled.memory_analysis()
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        + plan.temp_size_in_bytes
        - plan.alias_size_in_bytes
    )


def scoring_peak(model: LanguageModel, records: Sequence[CounterFactRecord], layer: int) -> int:
    """Bytes of the largest program that scores N records, each under a ROME edit of its own.

    Args:
      model: of shapes.
      records: N.
      layer: of the edits.

    Example:
      >>> scoring_peak(shapes_of_model("gpt2", "float32"), records, 5) / GIB  # doctest: +SKIP
      1.0
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
    """Bytes of the program that finds v* of N records at once, the largest of an edit.

    Args:
      model: of shapes.
      records: N, one chunk.
      layer: of the edits.

    Example:
      >>> edit_peak(shapes_of_model("gpt2", "float32"), records[:8], 5) / GIB  # doctest: +SKIP
      1.7
    """
    config, rome_config = model.config, ROMEConfig((layer,), v_num_grad_steps=edit_case.STEPS)
    tokens = inputs.tokenize_requests(
        model.tokenizer,
        [record.request for record in records],
        make_templates(config.vocab_size),
        rome_config.fact_token,
        config.context_length,
    )
    lookup = tokens.lookup.reshape(-1)
    states = jax.eval_shape(
        lambda params: layer_states(
            params, config, tokens.batch, lookup, layer, contexts=tokens.contexts
        ),
        model.params,
    )

    @jax.jit
    def find(params, tokens, hidden, value):
        return optimize_value(params, config, rome_config, tokens, hidden, value, layer)

    value = jax.ShapeDtypeStruct((len(records), config.width), jnp.float32)
    return peak(find.lower(model.params, tokens, states.hidden, value).compile())


def main() -> None:
    """Prints the table, a row as soon as it is known."""
    parser = argparse_flags.ArgumentParser(description=__doc__.split("\n")[0])
    sizes = {name.split("/")[-1]: name for name in EDIT_LAYERS}
    parser.add_argument("--models", nargs="+", choices=sizes, default=list(sizes))
    parser.add_argument(
        "--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"]
    )
    parser.add_argument(
        "--batch_sizes", nargs="+", type=int, default=[1, 8, 32, 64], help="cases scored together"
    )
    parser.add_argument("--chunk_size", type=int, default=8, help="edits optimised together")
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
