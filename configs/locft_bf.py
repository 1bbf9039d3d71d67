"""Hyperparameters of LocFT-BF.

Use: --config=configs/locft_bf.py:factworld-gpt2. The flag --config.FIELD=VALUE changes one field.
"""

from configs._method import config_function
from rome_jax.edit.config import MethodName

get_config = config_function(MethodName.LOCFT_BF)
