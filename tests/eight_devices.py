"""The program that test_sharding.py runs with eight simulated devices: `python -m tests.eight_devices DIRECTORY`.

DIRECTORY/<family>/one holds a checkpoint that one device saved, and this program saves DIRECTORY/<family>/eight. It
prints a JSON object of the results by family and check. The entry "forward" has those of `forwards`, by model and mesh,
and "loading" those of `loading`, by model and size of the leaves.
"""

from __future__ import annotations

import collections
import json
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.delta import apply_delta, revert_delta
from rome_jax.models import forward, huggingface
from rome_jax.models.config import Family, ModelConfig, Rotary, RotaryPairs
from rome_jax.models.export import save_hf
from rome_jax.models.orbax import load_orbax, save_orbax
from rome_jax.models.registry import load_model
from rome_jax.models.sharding import model_mesh, param_shardings, parse_mesh
from tests.models.checkpoints import (
    FAMILIES,
    GOLDEN,
    golden_model,
    random_params,
    save_checkpoint,
    tiny_config,
)
from tests.saved import random_delta

MESHES = ("data:2,model:4", "data:8", "model:8", "data:1,model:2")


def different(got, want) -> list[str]:
    """Lists the paths of leaves that differ in a bit or in dtype."""
    wanted = dict(jax.tree_util.tree_leaves_with_path(want))
    return [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(got)
        if leaf.dtype != wanted[path].dtype
        or not np.array_equal(np.asarray(leaf), np.asarray(wanted[path]))
    ]


def placed_elsewhere(params, shardings) -> list[str]:
    """Lists the paths of leaves that are not placed as requested."""
    return [
        jax.tree_util.keystr(path)
        for (path, leaf), wanted in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
        if not leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
    ]


def logits_errors(params: forward.Params, config: ModelConfig) -> dict[str, float]:
    """Computes the largest difference of logits from the whole model's, in standard deviations, by mesh.

    A batch of eight rows is split over the axis "data", and a batch of three rows is not.
    """
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (8, 9))
    batches = [TokenBatch(rows, np.ones(rows.shape, bool)) for rows in (ids, ids[:3])]
    plain = [np.asarray(forward.logits(params, config, batch)) for batch in batches]
    errors = {}
    for text in MESHES:
        placed = jax.device_put(params, param_shardings(config, parse_mesh(text)))
        split = [np.asarray(forward.logits(placed, config, batch)) for batch in batches]
        errors[text] = max(
            float(np.abs(a - b).max() / a.std()) for a, b in zip(plain, split, strict=True)
        )
    return errors


def forwards() -> dict[str, dict[str, float]]:
    """Compares models of which heads or vocabulary can be split, with models of which they cannot."""
    shared = {"width": 32, "num_heads": 8, "vocab_size": 48}
    configs = {
        "8 heads": tiny_config("gpt2", **shared),
        "5 heads": tiny_config("gpt2", num_heads=5, width=20, vocab_size=51),
        "4 heads, 2 key-value heads": tiny_config(
            "llama", num_heads=4, num_kv_heads=2, width=24, vocab_size=51
        ),
        "8 heads, 4 key-value heads": tiny_config(
            "llama", **shared, num_kv_heads=4, rotary=Rotary(4, RotaryPairs.HALVES)
        ),
    }
    models = {name: (random_params(config), config) for name, config in configs.items()}
    models |= {f"golden {family}": golden_model(family) for family in FAMILIES}
    return {name: logits_errors(*model) for name, model in models.items()}


def loading() -> dict[str, dict]:
    """Loads random models onto a mesh, once with leaves that count as small, and once with large leaves."""
    found = {}
    mesh = parse_mesh("data:2,model:4")
    for family in (Family.GPT2, Family.GPTJ, Family.NEOX, Family.LLAMA):
        kv = {"num_kv_heads": 4} if family is Family.LLAMA else {}
        config = tiny_config(family, num_heads=8, width=48, vocab_size=48, **kv)
        with tempfile.TemporaryDirectory() as name:
            params = save_checkpoint(Path(name), config)
            for kind, limit in (("small", huggingface._SMALL), ("large", 0)):
                huggingface._SMALL, usual = limit, huggingface._SMALL
                found[f"{family.value}, {kind}"] = load(Path(name), config, mesh, params)
                huggingface._SMALL = usual
    return found


def load(directory: Path, config: ModelConfig, mesh: Mesh, params: forward.Params) -> dict:
    """Loads a model onto a mesh; returns what was read and what is wrong with the params."""
    shardings = param_shardings(config, mesh)
    read: collections.Counter[int] = collections.Counter()
    loaded = huggingface.load_params(
        directory, config, mesh=mesh, on_read=lambda device, size: read.update({device.id: size})
    )
    pairs = list(zip(jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True))
    whole = sum(leaf.nbytes for leaf, place in pairs if place.is_fully_replicated)
    return {
        "different": different(loaded, params),
        "placed elsewhere": placed_elsewhere(loaded, shardings),
        "read": read,
        "replicated": whole,
        "split": sum(leaf.nbytes for leaf, _ in pairs) - whole,
    }


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
    edited_wrongly = different(edited, plain)
    down = edited["blocks"]["mlp"]["down"]["kernel"]
    donated = apply_delta(edited, delta, donate=True)
    return {
        "devices": len(jax.devices()),
        "restored": different(sharded.params, model.params),
        "restored in half precision": different(
            half.params, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params)
        ),
        "placed elsewhere": placed_elsewhere(sharded.params, shardings)
        + placed_elsewhere(half.params, shardings),
        "shapes of the shards": {
            "down": sharded.params["blocks"]["mlp"]["down"]["kernel"]
            .addressable_shards[0]
            .data.shape,
            "wte": sharded.params["wte"]["embedding"].addressable_shards[0].data.shape,
        },
        "fingerprint": sharded.fingerprint() == model.fingerprint(),
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
    results = {family: check(family, Path(sys.argv[1]) / family) for family in FAMILIES}
    print(json.dumps(results | {"forward": forwards(), "loading": loading()}))
