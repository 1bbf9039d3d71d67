"""Comparisons: evaluations of several methods on the same cases.

RESULTS_DIR/comparisons/MODEL_DATA/run.json     settings that all methods share
RESULTS_DIR/comparisons/MODEL_DATA/ALG_NAME/    a run of `eval.evaluate`
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rome_jax.edit import method as methods
from rome_jax.edit import resources
from rome_jax.edit.config import Hyperparameters
from rome_jax.edit.hypernetworks.networks import CONFIG_TYPES
from rome_jax.edit.method import METHODS, Editor, MethodName
from rome_jax.edit.variant import MethodVariant
from rome_jax.evaluation import summaries
from rome_jax.evaluation.datasets import Dataset
from rome_jax.evaluation.generation import GenerationTests
from rome_jax.evaluation.run import EvaluationRun
from rome_jax.evaluation.run_settings import Settings
from rome_jax.evaluation.summaries import Summary
from rome_jax.models import runs
from rome_jax.models.registry import LanguageModel

_REMEDY = "give another --results_dir"
_Made = TypeVar("_Made")


def select_algorithms(names: Iterable[str] | None) -> list[MethodVariant]:
    """Returns the methods of the given names, or all methods in the paper's order, which ends with ROME.

    Args:
      names: Names in upper or lower case, with modifiers as in MEMIT+RECT; None for all methods.

    Raises:
      ValueError: If there is no name, or a name is unknown or given twice.

    Example:
      >>> select_algorithms(["ft-l", "ROME"])
      ['FT-L', 'ROME']
    """
    if names is None:
        last = MethodName.ROME
        return [MethodVariant(name) for name in sorted(METHODS, key=lambda name: name is last)]
    given = list(names)
    try:
        found = [MethodVariant.parse(name) for name in given]
    except ValueError:
        found = []
    if not found or len(set(found)) < len(given):
        raise ValueError(
            f"--algs={','.join(given)}: name some of {', '.join(METHODS)}, each once, with modifiers as in MEMIT+RECT."
        )
    return found


def prepare_each(
    algorithms: Iterable[MethodVariant], prepare: Callable[[MethodVariant], _Made], *, strict: bool
) -> dict[MethodVariant, _Made]:
    """Runs a step of the preparation for each method; a method that fails is left out, and a printed line says why.

    Args:
      algorithms: The methods.
      prepare: The step; it raises ValueError or OSError if the method is not available.
      strict: Whether a failure is an error instead.

    Returns:
      The results of the step by method.

    Raises:
      ValueError: If a method fails and `strict` is set, or if all methods fail.

    Example:
      >>> prepare_each(select_algorithms(["FT", "KN"]), str.lower, strict=True)
      {'FT': 'ft', 'KN': 'kn'}
    """
    made = {}
    for algorithm in algorithms:
        try:
            made[algorithm] = prepare(algorithm)
        except (ValueError, OSError) as error:
            if strict:
                raise ValueError(f"cannot compare {algorithm}: {error}") from error
            print(f"Left out    {algorithm}: {error}", flush=True)
    if not made:
        raise ValueError("no method is left to compare: the lines above say why.")
    return made


def parse_hypernetworks(texts: Iterable[str], algorithms: Collection[str]) -> dict[str, str]:
    """Parses the flag --hypernetworks.

    Args:
      texts: Texts of the form METHOD=FILE.
      algorithms: The methods that are compared.

    Returns:
      Files by method.

    Raises:
      ValueError: If a text has another form, or names a method that has no hypernetwork or is not compared.

    Example:
      >>> parse_hypernetworks(["mend=mend.safetensors"], [MethodName.MEND])
      {'MEND': 'mend.safetensors'}
    """
    pairs = {}
    for text in texts:
        name, _, path = text.partition("=")
        name = name.upper()
        if not path or name not in CONFIG_TYPES or name not in algorithms:
            raise ValueError(
                f"--hypernetworks={text}: give METHOD=FILE, where METHOD is {' or '.join(CONFIG_TYPES)} and is "
                "among the methods to compare."
            )
        pairs[name] = path
    return pairs


def model_config(
    algorithm: str,
    model_name: str,
    moments_source: str | None = None,
    hypernetwork_source: str | None = None,
) -> Hyperparameters:
    """Returns the hyperparameters of a method: those of a given hypernetwork, else those known for the model.

    Args:
      algorithm: The method, with its modifiers.
      model_name: Name of the model.
      moments_source, hypernetwork_source: As for the flags --second_moments and --hypernetwork.

    Raises:
      ValueError: If no hyperparameters are known, second moments are missing, or the hypernetwork is damaged.
      OSError: If the hypernetwork does not exist.

    Example:
      >>> model_config(MethodName.ROME, "factworld-gpt2") == config
      True
    """
    variant = MethodVariant(algorithm)
    if hypernetwork_source is not None:
        return methods.read_config(variant.method, model_name, hypernetwork=hypernetwork_source)
    method = METHODS[variant.method]
    try:
        known = method.for_model(model_name, variant.modifiers)
    except ValueError:
        raise ValueError(
            f"no {algorithm} hyperparameters are known for model {model_name!r}: evaluate it by itself with your own, "
            f"eval.evaluate --alg_name={algorithm} --config={method.config_file % 'gpt2-xl'}."
        ) from None
    config = variant.modify(known)
    resources.check_second_moments(moments_source, model_name, config)
    return config


def read_configs(
    algorithms: Iterable[MethodVariant],
    model_name: str,
    moments_source: str | None = None,
    networks: Mapping[str, str] | None = None,
    *,
    strict: bool = False,
) -> dict[MethodVariant, Hyperparameters]:
    """Returns the hyperparameters of each method, before a model is loaded.

    Args:
      algorithms: The methods.
      model_name: Name of the model.
      moments_source: As for the flag --second_moments.
      networks: Files of hypernetworks by method, as returned by `parse_hypernetworks`.
      strict: As for `prepare_each`.

    Raises:
      ValueError: As for `prepare_each`.
    """
    networks = networks or {}
    return prepare_each(
        algorithms,
        lambda name: model_config(name, model_name, moments_source, networks.get(name)),
        strict=strict,
    )


def prepare_editors(
    model: LanguageModel,
    configs: Mapping[MethodVariant, Hyperparameters],
    moments_source: str | None = None,
    networks: Mapping[str, str] | None = None,
    *,
    seed: int = 0,
    chunk_size: int = 8,
    templates: Sequence[str] | None = None,
    strict: bool = False,
) -> dict[MethodVariant, Editor]:
    """Prepares the methods for a model.

    Args:
      model: The unedited model.
      configs: Hyperparameters by method.
      moments_source, networks, strict: As for `read_configs`.
      seed: Seed of the context templates.
      chunk_size: Number of requests that are optimized together; bounds the memory.
      templates: Context templates of the methods that use them; None samples them.

    Raises:
      ValueError: As for `prepare_each`.
    """
    networks = networks or {}
    return prepare_each(
        configs,
        lambda name: Editor.prepare(
            name.method,
            model,
            configs[name],
            moments_source=moments_source,
            hypernetwork_source=networks.get(name),
            seed=seed,
            chunk_size=chunk_size,
            templates=templates,
        ),
        strict=strict,
    )


def evaluate(
    results_dir: str | Path,
    editors: Mapping[MethodVariant, Editor],
    dataset: Dataset,
    generation: GenerationTests | None,
    *,
    moments_source: str | None = None,
    batch_size: int = 32,
    max_tokens: int,
    flags: Mapping[str, Any] | None = None,
) -> dict[str, Summary]:
    """Evaluates the cases of all methods that have not been evaluated yet.

    Args:
      results_dir: Holds the comparison, and the unedited model's scores.
      editors: The methods, prepared for one model.
      dataset: The records to edit and score.
      generation: The tests of generated texts; None generates no texts.
      moments_source: Where the second moments of the editors come from.
      batch_size, max_tokens: As for the flags of `eval.evaluate`.
      flags: Further values to record in the run.json of new runs.

    Returns:
      The summaries of the methods by name.

    Raises:
      ValueError: If a folder holds a run with other settings, which is checked before anything is edited, or if an edit
        is refused.
    """
    results, opened = Path(results_dir), {}
    try:
        for algorithm, editor in editors.items():
            settings = Settings.of(editor, dataset, generation, moments_source)
            name = f"{settings.scores['model'].replace('/', '_')}_{dataset.name}"
            directory = results / "comparisons" / name
            if (directory / "run.json").exists():
                runs.check_settings(directory, settings.scores, _REMEDY)
            opened[algorithm] = EvaluationRun.at(
                directory / algorithm, results / "pre", settings, _REMEDY, flags=flags
            )
            runs.open_run(directory, settings.scores, remedy=_REMEDY)
        print(f"Results     {directory}", flush=True)
        found = {}
        for algorithm, run in opened.items():
            run.evaluate(
                editors[algorithm],
                dataset,
                generation,
                batch_size=batch_size,
                max_tokens=max_tokens,
            )
            found[str(algorithm)] = summaries.summarize(run.cases(dataset))
    except Exception:
        for run in reversed(opened.values()):
            run.discard()
        raise
    return found
