"""The front door: second moments for a model, wherever they are: in the package, in files, or published."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from rome_jax.files.places import check_path
from rome_jax.models.registry import LanguageModel
from rome_jax.moments import checks, files, published
from rome_jax.moments.published import PUBLISHED
from rome_jax.moments.second_moment import SecondMoment
from rome_jax.moments.shipped import load_shipped


def read(
    source: str | Path | None, layers: Iterable[int], model: LanguageModel
) -> dict[int, SecondMoment]:
    """Reads the second moments of some layers for a model.

    Args:
      source: A directory that `eval.layer_stats` wrote or one file in it; an .npz file of the original or a folder of
        them; "published", which downloads the original's files or finds them in the cache; or None for the second
        moments that come with the package.
      layers: Layers to read.
      model: The model to be edited. Files of rome_jax must have been collected on it, on the model that it is an edit
        of, or on the same weights in another dtype. The original's files do not say which model they belong to; only
        their width is checked.

    Returns:
      The second moment of each layer, whose `match` says how it was verified.

    Raises:
      FileNotFoundError: If there is nothing at `source`, or a layer is missing there or in the package.
      ValueError: If a file is damaged, belongs to another model or layer, or no second moments come with the model.
      OSError: If a download fails.

    Example:
      >>> moments = rome_jax.moments.read(None, [0, 2], model)
      >>> moments[2].mean.shape, moments[2].provenance.corpus
      ((512, 512), 'factworld')
    """
    layers = sorted(set(model.config.check_layers(layers)))
    if source is None:
        shipped = load_shipped(model.name)
        if missing := ", ".join(str(layer) for layer in layers if layer not in shipped):
            raise FileNotFoundError(
                f"second moments of layers {', '.join(map(str, shipped))} come with {model.name}, not of {missing}: "
                f"collect them with `python -m eval.layer_stats --model_name={model.name} "
                f"--layers={missing.replace(' ', '')}`."
            )
        moments = {layer: shipped[layer] for layer in layers}
        what = f"the second moment that comes with {model.name}"
        return checks.verified(moments, model, dict.fromkeys(layers, what))
    path = Path(os.path.expanduser(check_path(source, "source")))
    if str(source) == PUBLISHED:
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
