"""EasyEdit's hyperparameter files: the published values of GPT-2 XL, and of GPT-J where there are none."""

import pytest

from rome_jax.data.request import EditWarning
from rome_jax.edit import method as methods
from rome_jax.edit import original_hparams as hparams
from rome_jax.edit.baseline_config import MENDConfig, RateOrder
from rome_jax.edit.config import KeyMode, MethodName, ROMEConfig
from rome_jax.edit.methods.alphaedit import AlphaEditConfig
from rome_jax.edit.methods.emmet import EMMETConfig
from rome_jax.edit.methods.pmet import PMETConfig
from rome_jax.edit.spread_config import MEMITConfig
from rome_jax.models.interventions import Leaf

# All files are those of hparams/METHOD in github zjunlp/EasyEdit, MIT; that of EMMET is of commit 11e11e7. YAML reads
# numbers such as 5e-1 as texts.
MODULES_XL = """
model_name: "./hugging_cache/gpt2-xl"
stats_dir: "./data/stats"
device: 0
fact_token: "subject_last"
v_num_grad_steps: 20
v_lr: 5e-1
v_loss_layer: 47
v_weight_decay: 0.5
kl_factor: 0.0625
rewrite_module_tmp: "transformer.h.{}.mlp.c_proj"
layer_module_tmp: "transformer.h.{}"
mlp_module_tmp: "transformer.h.{}.mlp"
attn_module_tmp: "transformer.h.{}.attn"
ln_f_module: "transformer.ln_f"
lm_head_module: "transformer.wte"
mom2_dataset: "wikipedia"
mom2_n_samples: 100000
mom2_dtype: "float32"
"""
RROME_XL = f"""
alg_name: "R-ROME"
layers: [17]
clamp_norm_factor: 4
mom2_adjustment: false
context_template_length_params: [[5, 10], [10, 10]]
model_parallel: false
fp16: false
{MODULES_XL}"""
SPREAD_XL = f"""
layers: [13, 14, 15, 16, 17]
clamp_norm_factor: 0.75
layer_selection: "all"
mom2_adjustment: true
{MODULES_XL}"""
MEMIT_XL = f'alg_name: "MEMIT"\nmom2_update_weight: 20000{SPREAD_XL}'
EMMET_XL = f"""
alg_name: "EMMET"
mom2_update_weight: 1
update_norm_lambda: 0
emmet_lambda: 0.1
{SPREAD_XL}"""
ALPHAEDIT_XL = f"""
alg_name: "AlphaEdit"
P_loc: "./null_space_project.pt"
mom2_update_weight: 20000
nullspace_threshold: 2e-2
L2: 10
{SPREAD_XL.replace("transformer.wte", "lm_head")}"""
PMET_J = """
alg_name: "PMET"
model_name: "./hugging_cache/gpt-j-6B"
stats_dir: "./data/stats"
device: 0
layers: [3, 4, 5, 6, 7, 8]
clamp_norm_factor: 0.75
layer_selection: "all"
fact_token: "subject_last"
v_num_grad_steps: 30
v_lr: 2e-1
v_loss_layer: 27
v_weight_decay: 0.5
kl_factor: 1
mom2_adjustment: true
mom2_update_weight: 15000
rewrite_module_tmp: "transformer.h.{}.mlp.fc_out"
rewrite_module_tmps: ["transformer.h.{}.mlp.fc_out"]
layer_module_tmp: "transformer.h.{}"
mlp_module_tmp: "transformer.h.{}.mlp.fc_out"
attn_module_tmp: "transformer.h.{}.attn.out_proj"
ln_f_module: "transformer.ln_f"
lm_head_module: "lm_head"
mom2_dataset: "wikipedia"
mom2_n_samples: 100000
mom2_dtype: "float32"
model_parallel: false
nll_loss_factor: 1
"""
MEND = """
archive: ./results/models/MEND/gpt2-xl
alg_name: "MEND"
device: 4
model_name: ./hugging_cache/gpt2-xl
model_class: GPT2LMHeadModel
tokenizer_class: GPT2Tokenizer
tokenizer_name: ./hugging_cache/gpt2-xl
model_parallel: false
inner_params: [INNER]
alg: MEND
lr: 1e-6
edit_lr: 1e-4
lr_lr: 1e-4
lr_scale: 1.0
seed: 42
cedit: 0.1
cloc: 1.0
cbase: 1.0
dropout: 0.0
train_base: False
no_grad_layers: null
one_sided: False
n_hidden: 1
hidden_dim: null
init: id
norm: True
combine: True
x_only: False
delta_only: False
act: relu
rank: 1920
mlp_class: IDMLP
shared: True
batch_size: 1
model_save_pt: 5000
silent: False
max_iters: 100000
log_interval: 1000
eval_log_interval: 1000
final_eval: True
val_interval: 1000
early_stop_patience: 20000
early_stop_key: "loss/total_edit_val"
eval_only: True
half: False
debug: False
save: False
verbose: True
val_batch_size: 5
accumulate_bs: 10
val_steps: 500 # only for debug
opt: Adam
grad_clip: 100.
results_dir: ./results
"""


def mend(template, layers, names):
    """Returns MEND's file with these weights, layer by layer."""
    return MEND.replace(
        "INNER", ", ".join(template.format(layer, name) for layer in layers for name in names)
    )


MEND_XL = mend("transformer.h.{}.mlp.{}.weight", (45, 46, 47), ("c_proj", "c_fc"))


def write(folder, text):
    path = folder / "hparams.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "expected", "ignored"),
    [
        (
            RROME_XL,
            ROMEConfig.for_model("gpt2-xl", mom2_adjustment=False, key_mode=KeyMode.CONSISTENT),
            "ROME does not use device, fp16, model_parallel, stats_dir",
        ),
        (MEMIT_XL, MEMITConfig.for_model("gpt2-xl"), "MEMIT does not use alg_name, device, .*"),
        (
            EMMET_XL,
            EMMETConfig.for_model("gpt2-xl", layers=(13, 14, 15, 16, 17), mom2_update_weight=1),
            "EMMET does not use alg_name, device, stats_dir",
        ),
        (
            ALPHAEDIT_XL,
            AlphaEditConfig.for_model("gpt2-xl"),
            "AlphaEdit does not use P_loc, alg_name, device, stats_dir",
        ),
        (
            PMET_J,
            PMETConfig.for_model("gpt-j-6b", mom2_update_weight=15000),
            "PMET does not use alg_name, device, model_parallel, stats_dir",
        ),
        (
            MEND_XL,
            MENDConfig.for_model("gpt2-xl", rate_order=RateOrder.REFERENCE),
            "MEND does not use accumulate_bs, alg, alg_name, archive, .*, edit_lr, .*, verbose",
        ),
    ],
    ids=["R-ROME", "MEMIT", "EMMET", "AlphaEdit", "PMET", "MEND"],
)
def test_easyedits_files_are_our_configurations(tmp_path, text, expected, ignored):
    with pytest.warns(EditWarning, match=rf"{ignored}\.$") as seen:
        assert hparams.read(write(tmp_path, text), type(expected)) == expected
    assert len(seen) == 1


def test_r_rome_is_rome_with_the_second_moments_that_its_file_asks_for(tmp_path):
    path = write(tmp_path, RROME_XL.replace("mom2_adjustment: false", "mom2_adjustment: true"))
    with pytest.warns(EditWarning, match="ROME does not use device"):
        config = methods.read_config(MethodName.ROME, "gpt2-xl", hparams_fname=path)
    assert config == ROMEConfig.for_model("gpt2-xl", key_mode=KeyMode.CONSISTENT)
    with pytest.raises(ValueError, match=r"alg_name='R-ROME' is not MEMIT: give the file of MEMIT"):
        hparams.read(path, MEMITConfig)
    named = write(tmp_path, 'alg: "R-ROME"\nlayers: [17]\n')
    assert hparams.read(named, ROMEConfig) == ROMEConfig((17,), key_mode=KeyMode.CONSISTENT)


@pytest.mark.filterwarnings("ignore::rome_jax.data.request.EditWarning")
def test_the_order_of_mends_weights_decides_the_order_of_its_rates(tmp_path):
    """The published code trains rates in the order of the list, and applies them in that of the model."""
    names = ("fc_in", "fc_out")
    text = mend("transformer.h.{}.mlp.{}.weight", (25, 26, 27), names)
    read = hparams.read(write(tmp_path, text), MENDConfig)
    assert read == MENDConfig.for_model("gpt-j-6b")
    text = mend("transformer.h.{}.mlp.{}.weight", (25, 26, 27), names[::-1])
    read = hparams.read(write(tmp_path, text), MENDConfig)
    assert read == MENDConfig.for_model("gpt-j-6b", rate_order=RateOrder.REFERENCE)
    text = mend(
        "model.layers.{}.mlp.{}.weight", (29, 30), ("gate_proj", "up_proj", "down_proj")
    ).replace("rank: 1920", "rank: 7")
    read = hparams.read(write(tmp_path, text.replace("n_hidden: 1", "n_hidden: 2")), MENDConfig)
    leaves = (Leaf.MLP_UP, Leaf.MLP_GATE, Leaf.MLP_DOWN)
    assert read == MENDConfig((29, 30), leaves=leaves, rank=7, num_hidden=2)
    one = mend("transformer.h.{}.mlp.{}.weight", (4,), ("c_proj",))
    read = hparams.read(write(tmp_path, one), MENDConfig)
    assert read == MENDConfig(4, leaves=(Leaf.MLP_DOWN,))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("norm: True", "norm: False", "norm=False is not supported: set it to True"),
        ("one_sided: False", "one_sided: True", "one_sided=True is not supported: set it to False"),
        ("IDMLP", "MLP", "mlp_class=MLP is not supported: set it to IDMLP"),
        ("train_base: False", "train_base: True", "train_base=True is not supported"),
        ("shared: True", "shared: some", "shared='some': give true or false"),
        ("n_hidden: 1", "n_hidden: -1", "n_hidden=-1: give a number of 0 or more"),
        ("rank: 1920", "rank: all", "rank='all': give an integer"),
        ("alg: MEND", "alg: KE", "alg='KE' is not MEND: give the file of MEND"),
        ("opt: Adam", "opt: Adam\nlayers: [45]", "no hyperparameter layers"),
        ("opt: Adam", "opt: Adam\nhidden: 3", "no hyperparameter hidden"),
        ("transformer.h.46.mlp.c_fc.weight, ", "", "inner_params does not name the same weights"),
        ("transformer.h.46.mlp.c_fc.weight", "lm_head.weight", "names 'lm_head.weight', which is"),
        (
            "transformer.h.46.mlp.c_fc.weight",
            "transformer.h.46.attn.c_proj.weight",
            "inner_params names 'transformer.h.46.attn.c_proj.weight', which is not supported: name",
        ),
        (
            "45.mlp.c_proj.weight, transformer.h.45.mlp.c_fc",
            "45.mlp.c_fc.weight, transformer.h.45.mlp.c_proj",
            "would mix up their learned rates, .* list them layer by layer, MLP_UP, MLP_DOWN in each",
        ),
    ],
)
def test_what_mend_cannot_do_is_refused(tmp_path, old, new, message):
    assert old in MEND_XL
    with pytest.raises(ValueError, match=message):
        hparams.read(write(tmp_path, MEND_XL.replace(old, new)), MENDConfig)
