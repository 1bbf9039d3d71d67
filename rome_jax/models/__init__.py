"""GPT models as data and pure functions: load them, run them, inspect them and change what they compute.

There is one module per topic: config, registry (`load_model`), forward, interventions, patches, generate, logit_lens,
sharding. The functions `generate` and `logit_lens` are only in `rome_jax`, because modules of this package have these
names.
"""

from typing import TYPE_CHECKING

from rome_jax import _lazy

if TYPE_CHECKING:
    from rome_jax.data.tokens import SequenceTooLongError, TokenBatch, encode, pad
    from rome_jax.models.config import (
        Activation,
        Family,
        LinearScaling,
        Llama3Scaling,
        ModelConfig,
        Norm,
        Rotary,
        RotaryPairs,
        UnsupportedConfigError,
    )
    from rome_jax.models.export import save_hf
    from rome_jax.models.families import PRESETS, family_config, from_hf, to_hf
    from rome_jax.models.forward import (
        Params,
        capture,
        embed,
        hidden_states,
        logits,
        plain_attention,
        run_last_layer,
        run_layer,
        run_layers,
        unembed,
    )
    from rome_jax.models.generate import GeneratedBatch, Sampling, clean_text, generate_text
    from rome_jax.models.huggingface import layer_name, load_params, save_params
    from rome_jax.models.interventions import Delta, DenseUpdate, Leaf, LowRankUpdate, Part, Site
    from rome_jax.models.layers import Attention, BlockOutput, Interventions, KVCache
    from rome_jax.models.logit_lens import top_tokens
    from rome_jax.models.orbax import load_orbax, save_orbax
    from rome_jax.models.patches import Patch, PatchMode, RunPatch
    from rome_jax.models.registry import (
        SHIPPED,
        LanguageModel,
        ModelNotFoundError,
        TokenizerError,
        load_model,
    )
    from rome_jax.models.sharding import model_mesh, param_shardings, parse_mesh, split_axes
    from rome_jax.models.stack import LayersOutput
    from rome_jax.models.transformer import Transformer, init_params, param_shapes

# Models and their files
__all__ = [
    "PRESETS",
    "SHIPPED",
    "Activation",
    "Family",
    "LanguageModel",
    "LinearScaling",
    "Llama3Scaling",
    "ModelConfig",
    "ModelNotFoundError",
    "Norm",
    "Rotary",
    "RotaryPairs",
    "TokenizerError",
    "UnsupportedConfigError",
    "family_config",
    "from_hf",
    "layer_name",
    "load_model",
    "load_orbax",
    "load_params",
    "save_hf",
    "save_orbax",
    "save_params",
    "to_hf",
]
# Tokens
__all__ += [
    "SequenceTooLongError",
    "TokenBatch",
    "encode",
    "pad",
]
# Forward passes
__all__ += [
    "Attention",
    "BlockOutput",
    "KVCache",
    "LayersOutput",
    "Params",
    "Transformer",
    "capture",
    "embed",
    "hidden_states",
    "init_params",
    "logits",
    "param_shapes",
    "plain_attention",
    "run_last_layer",
    "run_layer",
    "run_layers",
    "unembed",
]
# Interventions
__all__ += [
    "Delta",
    "DenseUpdate",
    "Interventions",
    "Leaf",
    "LowRankUpdate",
    "Part",
    "Patch",
    "PatchMode",
    "RunPatch",
    "Site",
]
# Generated texts and the logit lens
__all__ += [
    "GeneratedBatch",
    "Sampling",
    "clean_text",
    "generate_text",
    "top_tokens",
]
# Several devices
__all__ += [
    "model_mesh",
    "param_shardings",
    "parse_mesh",
    "split_axes",
]

_HOMES = {
    # Models and their files
    "PRESETS": "rome_jax.models.families",
    "SHIPPED": "rome_jax.models.registry",
    "Activation": "rome_jax.models.config",
    "Family": "rome_jax.models.config",
    "LanguageModel": "rome_jax.models.registry",
    "LinearScaling": "rome_jax.models.config",
    "Llama3Scaling": "rome_jax.models.config",
    "ModelConfig": "rome_jax.models.config",
    "ModelNotFoundError": "rome_jax.models.registry",
    "Norm": "rome_jax.models.config",
    "Rotary": "rome_jax.models.config",
    "RotaryPairs": "rome_jax.models.config",
    "TokenizerError": "rome_jax.models.registry",
    "UnsupportedConfigError": "rome_jax.models.config",
    "family_config": "rome_jax.models.families",
    "from_hf": "rome_jax.models.families",
    "layer_name": "rome_jax.models.huggingface",
    "load_model": "rome_jax.models.registry",
    "load_orbax": "rome_jax.models.orbax",
    "load_params": "rome_jax.models.huggingface",
    "save_hf": "rome_jax.models.export",
    "save_orbax": "rome_jax.models.orbax",
    "save_params": "rome_jax.models.huggingface",
    "to_hf": "rome_jax.models.families",
    # Tokens
    "SequenceTooLongError": "rome_jax.data.tokens",
    "TokenBatch": "rome_jax.data.tokens",
    "encode": "rome_jax.data.tokens",
    "pad": "rome_jax.data.tokens",
    # Forward passes
    "Attention": "rome_jax.models.layers",
    "BlockOutput": "rome_jax.models.layers",
    "KVCache": "rome_jax.models.layers",
    "LayersOutput": "rome_jax.models.stack",
    "Params": "rome_jax.models.forward",
    "Transformer": "rome_jax.models.transformer",
    "capture": "rome_jax.models.forward",
    "embed": "rome_jax.models.forward",
    "hidden_states": "rome_jax.models.forward",
    "init_params": "rome_jax.models.transformer",
    "logits": "rome_jax.models.forward",
    "param_shapes": "rome_jax.models.transformer",
    "plain_attention": "rome_jax.models.forward",
    "run_last_layer": "rome_jax.models.forward",
    "run_layer": "rome_jax.models.forward",
    "run_layers": "rome_jax.models.forward",
    "unembed": "rome_jax.models.forward",
    # Interventions
    "Delta": "rome_jax.models.interventions",
    "DenseUpdate": "rome_jax.models.interventions",
    "Interventions": "rome_jax.models.layers",
    "Leaf": "rome_jax.models.interventions",
    "LowRankUpdate": "rome_jax.models.interventions",
    "Part": "rome_jax.models.interventions",
    "Patch": "rome_jax.models.patches",
    "PatchMode": "rome_jax.models.patches",
    "RunPatch": "rome_jax.models.patches",
    "Site": "rome_jax.models.interventions",
    # Generated texts and the logit lens
    "GeneratedBatch": "rome_jax.models.generate",
    "Sampling": "rome_jax.models.generate",
    "clean_text": "rome_jax.models.generate",
    "generate_text": "rome_jax.models.generate",
    "top_tokens": "rome_jax.models.logit_lens",
    # Several devices
    "model_mesh": "rome_jax.models.sharding",
    "param_shardings": "rome_jax.models.sharding",
    "parse_mesh": "rome_jax.models.sharding",
    "split_axes": "rome_jax.models.sharding",
}

__getattr__, __dir__ = _lazy.attach(__name__, _HOMES)
