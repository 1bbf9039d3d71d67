"""The front door: second moments for a model, wherever they are: in files, in the package, published, or in its texts.

`choose` decides where they come from, and `read` reads them from there. If the user names no source, these are tried in
the order of `Source`:

    cached      files that eval.layer_stats wrote for this model to its default folder
    shipped     files in the package
    published   files of the original on the authors' server
    self        the model samples texts, over which the second moments are collected once
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rome_jax.files.downloads import UnreachableError
from rome_jax.files.places import check_path
from rome_jax.models import provenance
from rome_jax.models.registry import LanguageModel
from rome_jax.moments import checks, files, null_space, own_texts, published, shipped
from rome_jax.moments.collect import collect, default_directory, model_directory
from rome_jax.moments.limits import Limit
from rome_jax.moments.second_moment import SecondMoment


class Source(enum.StrEnum):
    """Where second moments come from, in the order in which `choose` tries them."""

    CACHED = "cached"
    SHIPPED = "shipped"
    PUBLISHED = published.PUBLISHED
    SELF = own_texts.NAME


@dataclasses.dataclass(frozen=True)
class Choice:
    """Where the second moments of some layers come from.

    Attributes:
      source: The kind of source; None for a path that the user gave.
      place: The argument `source` of `read`: a path, "published", or None for the package.
      reason: Why published second moments are not taken although this model has some, as a clause; empty if they were
        not tried.
      documents: Number of texts that the model samples if they have not been collected yet; 0 for other sources.
    """

    source: Source | None
    place: str | None
    reason: str = ""
    documents: int = 0


def choose(source: str | Path | None, layers: Iterable[int], model: LanguageModel) -> Choice:
    """Decides where the second moments of some layers come from.

    Published files are downloaded if nothing else is found. `collect_own` computes those of the source "self".

    Args:
      source: A member of `Source`, a path as in `read`, or None for the first source that has all layers.
      layers: Layers to edit.
      model: The model to be edited.

    Returns:
      The choice. Of several cached collections, that with the most tokens is taken.

    Raises:
      FileNotFoundError: If the source is "cached", and no collection has all layers.
      ValueError: If the model does not have a layer.
      OSError: If a download breaks off.

    Example:
      >>> choose(None, [0, 2], model).source.value
      'shipped'
    """
    layers = sorted(set(model.config.check_layers(layers)))
    if source is None:
        return _first(layers, model)
    if source == Source.CACHED:
        directory = find_cached(layers, model)
        if directory is None:
            raise FileNotFoundError(
                f"second_moments=cached: {model_directory(model)} holds no usable second moments of "
                f"{_named(layers)} of {model.name}: collect them with eval.layer_stats, or give another source."
            )
        return Choice(Source.CACHED, str(directory))
    if source == Source.SHIPPED:
        return Choice(Source.SHIPPED, None)
    if source == Source.PUBLISHED:
        return Choice(Source.PUBLISHED, published.PUBLISHED)
    if source == Source.SELF:
        return _own(layers, model)
    return Choice(None, os.fspath(source))


def _first(layers: Sequence[int], model: LanguageModel) -> Choice:
    """Returns the first source that has all layers."""
    if directory := find_cached(layers, model):
        return Choice(Source.CACHED, str(directory))
    if shipped.layers_of(model.name) >= set(layers):
        return Choice(Source.SHIPPED, None)
    reason = ""
    if published.folder_of(model.name):
        try:
            for layer in layers:
                published.download(model, layer)
            return Choice(Source.PUBLISHED, published.PUBLISHED)
        except UnreachableError as error:
            reason = f"those of the original cannot be downloaded ({error.reason})"
    return _own(layers, model, reason)


def _own(layers: Sequence[int], model: LanguageModel, reason: str = "") -> Choice:
    """Returns the choice of second moments over the model's own texts."""
    corpus = own_texts.self_corpus(model)
    place = default_directory(model, corpus, Limit(articles=corpus.default_articles))
    collected = files.files_in(place) if place.is_dir() else {}
    missing = not collected.keys() >= set(layers)
    documents = corpus.default_articles if missing else 0
    return Choice(Source.SELF, str(place), reason, documents or 0)


def find_cached(layers: Sequence[int], model: LanguageModel) -> Path | None:
    """Finds second moments that `eval.layer_stats` collected on a model and wrote to its default folder.

    Folders that lack a layer, belong to another model, average fewer tokens than the width of C, or are damaged are
    passed over.

    Args:
      layers: Layers that the folder must have.
      model: The model to be edited.

    Returns:
      The folder with the most tokens, or None if there is none.

    Example:
      >>> find_cached([0], model) is None
      True
    """
    found: dict[Path, int] = {}
    for directory in sorted(filter(Path.is_dir, model_directory(model).glob("*"))):
        with contextlib.suppress(OSError, ValueError):
            paths = files.files_in(directory)
            if not paths.keys() >= set(layers):
                continue
            known = [files.read_provenance(paths[layer]) for layer in layers]
            tokens = min(count for _, count in known)
            origins = {collected.origin for collected, _ in known}
            if tokens >= model.config.mlp_width and all(
                provenance.related(origin, model) for origin in origins
            ):
                found[directory] = tokens
    return max(found, key=lambda directory: found[directory], default=None)


def collect_own(
    model: LanguageModel, layers: Iterable[int], *, command: str = "", progress: bool = True
) -> Path:
    """Collects second moments over texts that the model samples, as `eval.layer_stats --dataset=self` does.

    An interrupted collection resumes, and layers that were collected before are kept.

    Args:
      model: The model.
      layers: Layers to collect.
      command: Command line that the files record.
      progress: Whether to show a progress bar.

    Returns:
      The folder of the files, which is the default one of `eval.layer_stats`.

    Raises:
      ValueError: If the folder belongs to another model or other settings.
      OSError: If the folder cannot be written to.

    Example:
      >>> collect_own(model, [0]).as_posix()  # doctest: +SKIP
      'stats/factworld-gpt2/self_192_articles'
    """
    corpus = own_texts.self_corpus(model)
    limit = Limit(articles=corpus.default_articles)
    directory = default_directory(model, corpus, limit)
    collect(model, corpus, layers, directory, limit=limit, command=command, progress=progress)
    return directory


def read(
    source: str | Path | None, layers: Iterable[int], model: LanguageModel
) -> dict[int, SecondMoment]:
    """Reads the second moments of some layers for a model.

    Args:
      source: A directory that `eval.layer_stats` wrote or one file in it; an .npz file of the original or a folder of
        them; or a member of `Source`: "cached", "published", which downloads the original's files or finds them in the
        cache, "self", which must have been collected, or "shipped". None means "shipped".
      layers: Layers to read.
      model: The model to be edited. Files of rome_jax must have been collected on it, on the model that it is an edit
        of, or on the same weights in another dtype. The original's files do not say which model they belong to; only
        their width is checked.

    Returns:
      The second moment of each layer, whose `match` says how it was verified.

    Raises:
      FileNotFoundError: If there is nothing at `source`, or a layer is missing there or in the package.
      ValueError: If a file is damaged, belongs to another model or layer, or holds null spaces, or no second moments
        come with the model.
      OSError: If a download fails.

    Example:
      >>> moments = rome_jax.moments.read(None, [0, 2], model)
      >>> moments[2].mean.shape, moments[2].provenance.corpus
      ((512, 512), 'factworld')
    """
    layers = sorted(set(model.config.check_layers(layers)))
    place = None if source is None else choose(check_path(source, "source"), layers, model).place
    if place is None:
        return _read_shipped(layers, model)
    path = Path(os.path.expanduser(place))
    if null_space.is_null_space_file(path):
        raise ValueError(null_space.refusal(place, "this function"))
    if place == published.PUBLISHED:
        paths = {layer: published.download(model, layer) for layer in layers}
    elif path.suffix == ".npz":
        paths = published.one_file(path, layers, model.config)
    elif path.is_dir() and not files.files_in(path) and any(path.glob("*.npz")):
        paths = {layer: published.find(path, layer, model.config) for layer in layers}
    else:
        return files.load(path, model, layers)
    width = model.config.mlp_width
    moments = {layer: published.load_reference(paths[layer], width=width) for layer in layers}
    return checks.verified(moments, model, {layer: str(path) for layer, path in paths.items()})


def _read_shipped(layers: Sequence[int], model: LanguageModel) -> dict[int, SecondMoment]:
    """Reads second moments of the package."""
    found = shipped.load_shipped(model.name)
    if missing := ", ".join(str(layer) for layer in layers if layer not in found):
        raise FileNotFoundError(
            f"second moments of layers {', '.join(map(str, found))} come with {model.name}, not of {missing}: "
            f"collect them with `python -m eval.layer_stats --model_name={model.name} "
            f"--layers={missing.replace(' ', '')}`."
        )
    moments = {layer: found[layer] for layer in layers}
    what = f"the second moment that comes with {model.name}"
    return checks.verified(moments, model, dict.fromkeys(layers, what))


def _named(layers: Sequence[int]) -> str:
    """Returns layers as text, such as "layers 0, 2"."""
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
