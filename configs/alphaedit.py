"""Hyperparameters of AlphaEdit.

Use: --config=configs/alphaedit.py:gpt2-xl. The flag --config.FIELD=VALUE changes one field.
"""

from configs._method import config_function
from rome_jax.edit.config import MethodName

get_config = config_function(MethodName.ALPHAEDIT)
