"""Hyperparameters of PMET.

Use: --config=configs/pmet.py:gpt-j-6b. The flag --config.FIELD=VALUE changes one field.
"""

from configs._method import config_function
from rome_jax.edit.config import MethodName

get_config = config_function(MethodName.PMET)
