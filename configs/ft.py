"""Hyperparameters of fine-tuning: FT (`unconstr`), FT-L (`constr`) and FT-attn (`attn`).

Use: --config=configs/ft.py:gpt2-xl,constr. The flag --config.FIELD=VALUE changes one field.
"""

from configs._method import config_function_of_variants
from rome_jax.edit.baseline_config import FT_VARIANTS

get_config = config_function_of_variants(FT_VARIANTS)
