"""Comparisons: evaluations of several methods on the same cases.

RESULTS_DIR/comparisons/MODEL_DATA/run.json     what all methods share
RESULTS_DIR/comparisons/MODEL_DATA/ALG_NAME/    a run of `eval.evaluate`
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rome_jax.edit import method as methods
from rome_jax.edit.config import Hyperparameters
from rome_jax.edit.hypernetworks.networks import CONFIG_TYPES
from rome_jax.edit.method import METHODS, Editor, MethodName
from rome_jax.evaluation import summaries
from rome_jax.evaluation.datasets import Dataset
from rome_jax.evaluation.generation import GenerationTests
from rome_jax.evaluation.run import EvaluationRun, Settings
from rome_jax.evaluation.summaries import Summary
from rome_jax.models import runs
from rome_jax.models.registry import LanguageModel

_REMEDY = "give another --results_dir"
_Made = TypeVar("_Made")


def select_algorithms(names: Iterable[str] | None) -> list[MethodName]:
    """Methods by name, in either case, or all in the paper's order, ROME below the others.

    Raises:
      ValueError: an unknown name, none, or one twice.

    Example:
      >>> select_algorithms(["ft-l", "ROME"])
      [<MethodName.FT_L: 'FT-L'>, <MethodName.ROME: 'ROME'>]
    """
    if names is None:
        return sorted(METHODS, key=lambda algorithm: algorithm is MethodName.ROME)
    known = {name.casefold(): name for name in METHODS}
    given = list(names)
    names = [known.get(name.strip().casefold(), name) for name in given]
    if not names or len(set(names)) < len(names) or set(names) - set(METHODS):
        raise ValueError(f"--algs={','.join(given)}: name some of {', '.join(METHODS)}, each once.")
    return names


def prepare_each(
    algorithms: Iterable[MethodName], prepare: Callable[[MethodName], _Made], *, strict: bool
) -> dict[MethodName, _Made]:
    """What a step of the preparation gives for each method; one that fails is left out, and a line says why.

    Args:
      algorithms: the methods.
      prepare: the step; ValueError or OSError says that a method cannot be had.
      strict: no method is to be left out.

    Raises:
      ValueError: a method fails and `strict`, or all fail.
    """
    made = {}
    for algorithm in algorithms:
        try:
            made[algorithm] = prepare(algorithm)
        except (ValueError, OSError) as error:
            if strict:
                raise ValueError(f"--algs names {algorithm}, but {error}") from error
            print(f"Left out    {algorithm}: {error}", flush=True)
    if not made:
        raise ValueError("no method is left to compare: the lines above say why.")
    return made


def parse_hypernetworks(texts: Iterable[str], algorithms: Collection[MethodName]) -> dict[str, str]:
    """Files of hypernetworks by method.

    Args:
      texts: such as MEND=mend.safetensors.
      algorithms: the methods that are compared.

    Raises:
      ValueError: another form, or a method that is not compared.
    """
    pairs = {}
    for text in texts:
        name, _, path = text.partition("=")
        name = name.upper()
        if not path or name not in CONFIG_TYPES or name not in algorithms:
            raise ValueError(
                f"--hypernetworks={text}: give METHOD=FILE, with {' or '.join(CONFIG_TYPES)} as the "
                "method, which --algs has to name too if it is given."
            )
        pairs[name] = path
    return pairs


def model_config(
    algorithm: MethodName,
    model_name: str,
    moments_source: str | None = None,
    hypernetwork_source: str | None = None,
) -> Hyperparameters:
    """A hypernetwork's hyperparameters, or else the model's own of a method.

    Args:
      algorithm, model_name: which.
      moments_source, hypernetwork_source: as the flags --second_moments and --hypernetwork.

    Raises:
      ValueError: there are none, or second moments are missing, or a damaged hypernetwork.
      OSError: no such hypernetwork.
    """
    if hypernetwork_source is not None:
        return methods.read_config(algorithm, model_name, hypernetwork=hypernetwork_source)
    method = METHODS[algorithm]
    try:
        config = method.for_model(model_name)
    except ValueError:
        raise ValueError(
            f"no {algorithm} hyperparameters are known for model {model_name!r}: evaluate it by itself with your own, "
            f"eval.evaluate --alg_name={algorithm} --config={method.config_file % 'gpt2-xl'}."
        ) from None
    methods.check_second_moments(moments_source, model_name, config)
    return config


def read_configs(
    algorithms: Iterable[MethodName],
    model_name: str,
    moments_source: str | None = None,
    networks: Mapping[str, str] | None = None,
    *,
    strict: bool = False,
) -> dict[MethodName, Hyperparameters]:
    """The hyperparameters of each method, before a model is loaded.

    Args:
      algorithms, model_name: which.
      moments_source: as the flag --second_moments.
      networks: files of hypernetworks by method, as of `parse_hypernetworks`.
      strict: no method is to be left out.

    Raises:
      ValueError: as `prepare_each`.
    """
    networks = networks or {}
    return prepare_each(
        algorithms,
        lambda name: model_config(name, model_name, moments_source, networks.get(name)),
        strict=strict,
    )


def prepare_editors(
    model: LanguageModel,
    configs: Mapping[MethodName, Hyperparameters],
    moments_source: str | None = None,
    networks: Mapping[str, str] | None = None,
    *,
    seed: int = 0,
    chunk_size: int = 8,
    strict: bool = False,
) -> dict[MethodName, Editor]:
    """The methods made ready for a model.

    Args:
      model: which.
      configs: hyperparameters by method.
      moments_source, networks, strict: as `read_configs`.
      seed: of the context templates.
      chunk_size: requests that are optimised at once; bounds the memory.

    Raises:
      ValueError: as `prepare_each`.
    """
    networks = networks or {}
    return prepare_each(
        configs,
        lambda name: Editor.prepare(
            name,
            model,
            configs[name],
            moments_source=moments_source,
            hypernetwork_source=networks.get(name),
            seed=seed,
            chunk_size=chunk_size,
        ),
        strict=strict,
    )


def evaluate(
    results_dir: str | Path,
    editors: Mapping[MethodName, Editor],
    dataset: Dataset,
    generation: GenerationTests | None,
    *,
    moments_source: str | None = None,
    batch_size: int = 32,
    max_tokens: int,
    flags: Mapping[str, Any] | None = None,
) -> dict[str, Summary]:
    """Evaluates the cases of all methods that are not there yet.

    Args:
      results_dir: holds the comparison, and the unedited model's scores.
      editors: methods made ready for one model.
      dataset, generation: what is asked; no texts are generated if None.
      moments_source: where the editors' second moments come from.
      batch_size, max_tokens: as the flags of `eval.evaluate`.
      flags: what else is written down of new runs.

    Returns:
      The methods' summaries by name.

    Raises:
      ValueError: a run of other settings, before anything is edited; or what an edit refuses.
    """
    results, opened = Path(results_dir), {}
    for algorithm, editor in editors.items():
        settings = Settings.of(editor, dataset, generation, moments_source)
        name = f"{settings.scores['model'].replace('/', '_')}_{dataset.name}"
        directory = results / "comparisons" / name
        runs.open_run(directory, settings.scores, remedy=_REMEDY)
        opened[algorithm] = EvaluationRun.at(
            directory / algorithm, results / "pre", settings, _REMEDY, flags=flags
        )
    print(f"Results     {directory}", flush=True)
    found = {}
    for algorithm, run in opened.items():
        run.evaluate(
            editors[algorithm], dataset, generation, batch_size=batch_size, max_tokens=max_tokens
        )
        found[algorithm.value] = summaries.summarize(run.cases(dataset))
    return found
