"""The program that test_sharding.py runs with eight simulated devices: `python -m tests.eight_devices DIRECTORY`.

DIRECTORY/<family>/one holds a checkpoint that one device saved, and this program saves DIRECTORY/<family>/eight. It
prints a JSON object of the results by family and check.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.delta import apply_delta, revert_delta
from rome_jax.models import forward
from rome_jax.models.config import ModelConfig
from rome_jax.models.export import save_hf
from rome_jax.models.orbax import load_orbax, save_orbax
from rome_jax.models.registry import load_model
from rome_jax.models.sharding import model_mesh, param_shardings
from tests.models.checkpoints import FAMILIES, GOLDEN, random_params, tiny_config
from tests.saved import random_delta


def different(got, want) -> list[str]:
    """Lists the paths of leaves that differ in a bit or in dtype."""
    wanted = dict(jax.tree_util.tree_leaves_with_path(want))
    return [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(got)
        if leaf.dtype != wanted[path].dtype
        or not np.array_equal(np.asarray(leaf), np.asarray(wanted[path]))
    ]


def logits_error(config: ModelConfig, mesh: Mesh) -> float:
    """Computes the largest difference of logits between a whole and a split model, in standard deviations."""
    params = random_params(config)
    sharded = jax.device_put(params, param_shardings(config, mesh))
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (3, 9))
    batch = TokenBatch(ids, np.ones(ids.shape, bool))
    plain, split = (np.asarray(forward.logits(p, config, batch)) for p in (params, sharded))
    return float(np.abs(plain - split).max() / plain.std())


def check(family: str, directory: Path) -> dict:
    """Runs all checks of one family."""
    mesh = model_mesh()
    model = load_model(GOLDEN / "ckpt" / family)
    shardings = param_shardings(model.config, mesh)
    sharded = load_orbax(directory / "one", mesh=mesh)
    half = load_orbax(directory / "one", mesh=mesh, dtype="bfloat16")
    delta = random_delta(model)
    plain, edited = (apply_delta(params, delta) for params in (model.params, sharded.params))
    save_orbax(directory / "eight", sharded.replace(params=edited))
    save_hf(directory / "hf", sharded.replace(params=edited))
    # Eight heads and a vocabulary of 48 are split over eight devices; 3 heads and a vocabulary of 50 are not.
    configs = {"even": tiny_config(family, num_heads=8, width=32, vocab_size=48)}
    if family == "gpt2":
        configs["uneven"] = tiny_config(family)
    edited_wrongly = different(edited, plain)
    down = edited["blocks"]["mlp"]["down"]["kernel"]
    donated = apply_delta(edited, delta, donate=True)
    return {
        "devices": len(jax.devices()),
        "restored": different(sharded.params, model.params),
        "restored in half precision": different(
            half.params, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params)
        ),
        "placed elsewhere": [
            jax.tree_util.keystr(path)
            for tree in (sharded.params, half.params)
            for (path, leaf), wanted in zip(
                jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(shardings), strict=True
            )
            if not leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
        ],
        "shapes of the shards": {
            "down": sharded.params["blocks"]["mlp"]["down"]["kernel"]
            .addressable_shards[0]
            .data.shape,
            "wte": sharded.params["wte"]["embedding"].addressable_shards[0].data.shape,
        },
        "fingerprint": sharded.fingerprint() == model.fingerprint(),
        "logits": {name: logits_error(config, mesh) for name, config in configs.items()},
        "edited": edited_wrongly,
        "edited stays in place": down.is_deleted()
        and donated["blocks"]["mlp"]["down"]["kernel"].sharding.is_equivalent_to(
            shardings["blocks"]["mlp"]["down"]["kernel"], 3
        ),
        "reverted": float(
            jnp.abs(
                revert_delta(donated, delta)["blocks"]["mlp"]["down"]["kernel"]
                - plain["blocks"]["mlp"]["down"]["kernel"]
            ).max()
        ),
    }


if __name__ == "__main__":
    print(json.dumps({family: check(family, Path(sys.argv[1]) / family) for family in FAMILIES}))
