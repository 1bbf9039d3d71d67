"""Hyperparameters: the original's files, config files, and what belongs to a model."""

import json

import pytest
from ml_collections import ConfigDict

from rome_jax.data.positions import FactToken
from rome_jax.data.request import EditWarning
from rome_jax.edit import method as methods
from rome_jax.edit import original_hparams as hparams
from rome_jax.edit import resources
from rome_jax.edit.baseline_config import (
    FTConfig,
    KEConfig,
    KNConfig,
    MENDConfig,
    RateOrder,
    RowVectors,
    TargetEncoding,
    TargetScoring,
)
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.method import MethodName
from rome_jax.edit.methods.alphaedit import AlphaEditConfig
from rome_jax.edit.methods.emmet import EMMETConfig
from rome_jax.edit.methods.encore import ENCOREConfig
from rome_jax.edit.methods.locft_bf import LocFTConfig
from rome_jax.edit.methods.pmet import PMETConfig
from rome_jax.edit.methods.ultra_edit import UltraEditConfig
from rome_jax.edit.spread_config import MEMITConfig
from rome_jax.files import extras
from rome_jax.models.interventions import Leaf

# The entries of the published hparams/ROME/gpt2-xl.json and hparams/FT/gpt2-xl_attn.json (github kmeng01/rome, MIT).
MODULES = {
    "layer_module_tmp": "transformer.h.{}",
    "mlp_module_tmp": "transformer.h.{}.mlp",
    "attn_module_tmp": "transformer.h.{}.attn",
    "ln_f_module": "transformer.ln_f",
    "lm_head_module": "transformer.wte",
}
ROME_XL = MODULES | {
    "layers": [17],
    "fact_token": "subject_last",
    "v_num_grad_steps": 20,
    "v_lr": 5e-1,
    "v_loss_layer": 47,
    "v_weight_decay": 0.5,
    "clamp_norm_factor": 4,
    "kl_factor": 0.0625,
    "mom2_adjustment": True,
    "context_template_length_params": [[5, 10], [10, 10]],
    "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj",
    "mom2_dataset": "wikipedia",
    "mom2_n_samples": 100000,
    "mom2_dtype": "float32",
}
FT_XL_ATTN = MODULES | {
    "layers": [33],
    "num_steps": 25,
    "lr": 1e-3,
    "weight_decay": 0,
    "kl_factor": 0,
    "norm_constraint": 1e-3,
    "rewrite_module_tmp": "transformer.h.{}.attn.c_attn",
}
# hparams/KN/gpt2-xl.json of the same.
KN_XL = {
    "lr_scale": 1.0,
    "n_toks": 10,
    "model_name": "gpt2-xl",
    "refine": False,
    "batch_size": 20,
    "steps": 20,
    "adaptive_threshold": 0.2,
    "p": 0.4,
}
# hparams/KE/gpt2-xl.json of the same; those of MEND have the same entries.
KE_XL = {"lr_scale": 0.5, "n_toks": 1, "model_name": "gpt2-xl", "counterfact": False}


def write(folder, content):
    path = folder / "hparams.json"
    path.write_text(json.dumps(content))
    return path


def test_the_originals_files_are_our_configurations(tmp_path, golden):
    rome = hparams.read(write(tmp_path, ROME_XL), ROMEConfig)
    assert rome == ROMEConfig.for_model("gpt2-xl")
    attention = hparams.read(write(tmp_path, FT_XL_ATTN), FTConfig)
    theirs = {"scoring": TargetScoring.REFERENCE}
    assert attention == FTConfig.for_model("gpt2-xl", MethodName.FT_ATTN, **theirs)
    free = FT_XL_ATTN | {
        "norm_constraint": False,
        "rewrite_module_tmp": "transformer.h.{}.mlp.fc_out",
    }
    free = hparams.read(write(tmp_path, free), FTConfig)
    assert (free.norm_constraint, free.leaves) == (None, (Leaf.MLP_DOWN,))
    neurons = hparams.read(write(tmp_path, KN_XL), KNConfig)
    theirs = {"encoding": TargetEncoding.REFERENCE, "row_vectors": RowVectors.REFERENCE}
    assert neurons == KNConfig.for_model("gpt2-xl", **theirs)
    neurons = hparams.read(write(tmp_path, KN_XL | {"steps": 5, "refine": True}), KNConfig)
    assert (neurons.steps, neurons.refine, neurons.p) == (5, True, 0.4)
    network = hparams.read(write(tmp_path, KE_XL), KEConfig)
    assert network == KEConfig.for_model("gpt2-xl")  # which has no rates to scale
    network = hparams.read(write(tmp_path, KE_XL), MENDConfig)
    order = {"rate_order": RateOrder.REFERENCE}
    assert network == MENDConfig.for_model("gpt2-xl", lr_scale=0.5, **order)
    network = hparams.read(write(tmp_path, KE_XL | {"model_name": "gpt-j-6b"}), MENDConfig)
    assert network == MENDConfig.for_model("gpt-j-6b", lr_scale=0.5)
    gptj = hparams.read(write(tmp_path, golden("rome_gptj_last").info["hparams"]), ROMEConfig)
    assert gptj.fact_token is FactToken.LAST


@pytest.mark.parametrize(
    ("config_type", "content", "message"),
    [
        (ROMEConfig, ROME_XL | {"steps": 3}, r"hparams\.json: no hyperparameter steps"),
        (ROMEConfig, ROME_XL | {"fact_token": "middle"}, "fact_token='middle': give one of"),
        (ROMEConfig, ROME_XL | {"layers": []}, "name at least one layer"),
        (
            ROMEConfig,
            ROME_XL | {"rewrite_module_tmp": "transformer.h.{}.attn.c_attn"},
            "is not the down-projection, which ROME edits",
        ),
        (
            FTConfig,
            FT_XL_ATTN | {"rewrite_module_tmp": "gpt_neox.layers.{}.mlp"},
            "rewrite_module_tmp='gpt_neox.layers.{}.mlp' is not supported",
        ),
        (FTConfig, FT_XL_ATTN | {"kl_factor": 1.0}, "kl_factor=1.0 is not supported: set it to 0"),
        (KNConfig, KN_XL | {"model_name": "gpt5"}, "no KN configuration is known .* 'gpt5'"),
        (KNConfig, KN_XL | {"kl_factor": 0}, "no hyperparameter kl_factor"),
        (ROMEConfig, [17], "holds list: give a JSON object"),
        (ROMEConfig, ROME_XL | {"v_lr": None}, r"hparams\.json: v_lr=None: give a finite number"),
        (
            ROMEConfig,
            ROME_XL | {"alg_name": "KN"},
            "alg_name='KN' is not ROME: give the file of ROME",
        ),
        (
            ROMEConfig,
            ROME_XL | {"l2": 1},
            "the layouts of ROME, MEMIT, AlphaEdit, LocFT-BF and EasyEdit are read",
        ),
        (ROMEConfig, ROME_XL | {"rewrite_module_tmp": 7}, "rewrite_module_tmp=7: give a text"),
        (FTConfig, FT_XL_ATTN | {"kl_factor": "some"}, "kl_factor='some': give a finite number"),
        (
            FTConfig,
            FT_XL_ATTN | {"objective_optimization": "x"},
            "set it to prompt_last or target_new",
        ),
        (KNConfig, KN_XL | {"model_name": ["gpt2-xl"]}, "model_name=.* give a text"),
    ],
)
def test_files_that_cannot_be_meant_are_named(tmp_path, config_type, content, message):
    with pytest.raises(ValueError, match=message.replace("{}", r"\{\}")):
        hparams.read(write(tmp_path, content), config_type)


@pytest.mark.parametrize(
    "bound", [(False, None), (1, None), ("false", None), (5e-4, 5e-4), ("5e-4", 5e-4)]
)
def test_only_a_float_bounds_fine_tuning_as_in_the_original(tmp_path, bound):
    given, meant = bound
    path = write(tmp_path, FT_XL_ATTN | {"norm_constraint": given})
    assert hparams.read(path, FTConfig).norm_constraint == meant


def test_the_golden_files_give_what_the_original_computed(tmp_path, golden):
    """The comparisons with the golden numbers use these settings."""
    for name, bound in (("ft_gpt2_unconstr_multitoken", None), ("ft_gpt2_constr_int", None)):
        config = hparams.read(write(tmp_path, golden(name).info["hparams"]), FTConfig)
        assert (config.scoring, config.norm_constraint) == (TargetScoring.REFERENCE, bound)
    values = golden("kn_gpt2_single").info["hparams"] | {"layers": [0, 1]}
    assert hparams.read(write(tmp_path, values), KNConfig).encoding is TargetEncoding.REFERENCE


def test_files_of_easyedit_and_alphaedit_are_read(tmp_path):
    path = tmp_path / "gpt2-xl.yaml"
    path.write_text(
        'alg_name: "ROME"\nmodel_name: "./hugging_cache/gpt2-xl"\nstats_dir: "./data"\ndevice: 0\n'
        "layers: [17]\nv_lr: 5e-1\nmom2_adjustment: true\nmodel_parallel: false\n"
    )
    with pytest.warns(
        EditWarning, match="ROME does not use alg_name, device, model_parallel, stats"
    ) as seen:
        assert hparams.read(path, ROMEConfig) == ROMEConfig.for_model("gpt2-xl")
    assert len(seen) == 1
    fine = FT_XL_ATTN | {"alg_name": "FT", "objective_optimization": "target_new", "max_length": 40}
    with pytest.warns(EditWarning, match="FT does not use alg_name"):
        config = hparams.read(write(tmp_path, fine), FTConfig)
    assert config.scoring is TargetScoring.EACH_TOKEN
    alpha = ROME_XL | {"mom2_update_weight": 20000, "layer_selection": "all"}
    alpha = write(tmp_path, alpha | {"nullspace_threshold": 2e-2, "L2": 10})
    with pytest.warns(EditWarning, match="MEMIT does not use L2, nullspace_threshold"):
        assert hparams.read(alpha, MEMITConfig).mom2_update_weight == 20000


@pytest.mark.parametrize(
    ("config_type", "case"),
    [
        (MEMITConfig, "memit_gpt2_one"),
        (EMMETConfig, "emmet_gpt2_one"),
        (EMMETConfig, "emmet_gptj_one"),
        (AlphaEditConfig, "alphaedit_gpt2_seq"),
        (PMETConfig, "pmet_gpt2_batch2"),
    ],
)
def test_files_of_the_batch_editors_are_read(tmp_path, golden, config_type, case):
    hparams_of = golden(case).info["hparams"]
    config = hparams.read(write(tmp_path, hparams_of), config_type)
    for name, value in config.to_dict().items():
        if name in hparams_of:
            expected = tuple(hparams_of[name]) if name == "layers" else hparams_of[name]
            assert value == expected, name
    with pytest.raises(ValueError, match=r"layer_selection=random is not supported: set it to all"):
        hparams.read(write(tmp_path, hparams_of | {"layer_selection": "random"}), config_type)


def test_hyperparameters_come_from_one_place(tmp_path):
    path = write(tmp_path, ROME_XL)
    values = ConfigDict(ROMEConfig.for_model("gpt2-xl", v_lr=0.1).to_dict(), convert_dict=False)
    assert methods.read_config(MethodName.ROME, "my-model", values).v_lr == 0.1
    assert methods.read_config(MethodName.ROME, "my-model", hparams_fname=path).layers == (17,)
    assert methods.read_config(MethodName.ROME, "EleutherAI/gpt-j-6B").layers == (5,)
    changed = methods.read_config(
        MethodName.ROME, "my-model", hparams_fname=path, changes={"v_lr": "0.1"}
    )
    assert changed == ROMEConfig.for_model("gpt2-xl", v_lr=0.1)
    assert methods.read_config(MethodName.ROME, "my-model", changes={"layers": 3}) == ROMEConfig(3)
    with pytest.raises(ValueError, match=r"no hyperparameter lr, did you mean v_lr\?"):
        methods.read_config(MethodName.ROME, "gpt2-xl", changes={"lr": 1})
    with pytest.raises(ValueError, match="both give hyperparameters"):
        methods.read_config(MethodName.ROME, "gpt2-xl", values, path)
    for algorithm in MethodName:
        with pytest.raises(ValueError, match=f"no {algorithm} layer is known for model 'my-model'"):
            methods.read_config(algorithm, "my-model")


def test_a_method_without_a_known_layout_is_named(tmp_path):
    path = write(tmp_path, {"layers": [3]})
    with pytest.raises(ValueError, match=r"no layout .* is known for ENCORE: give .* --config"):
        hparams.read(path, ENCOREConfig)


def modules(template, layers):
    return [template.format(layer) for layer in layers]


# The entries of hparams/UltraEdit/gpt-j-6B.yaml and of an earlier hparams/UltraEdit/gpt-j.yaml (github zjunlp/EasyEdit,
# MIT); the second are those of UltraEdit's authors.
ULTRAEDIT_J = {
    "alg_name": "ULTRAEDIT",
    "device": 0,
    "model_name": "your/path/gpt-j-6B",
    "model_class": "AutoModelForCausalLM",
    "tokenizer_class": "AutoTokenizer",
    "tokenizer_name": "your/path/gpt-j-6B",
    "inner_params": modules("transformer.h.{}.mlp.fc_out", range(18, 27)),
    "dropout": 0.0,
    "no_grad_layers": None,
    "lr": "1e-6",  # YAML reads 1e-6 as a text
    "token": "mask",
    "batch_size": 10,
    "batch_size_once": 10,
    "editor_batch_size": 1024,
    "silent": False,
    "half": True,
    "model_parallel": False,
    "results_dir": "./results",
}
ULTRAEDIT_J_AUTHORS = {
    "name_or_path": "your/path/gpt-j-6b",
    "name": "gpt-j",
    "model_vec_size": 18432,
    "class_name": "AutoModelForCausalLM",
    "bit": 0,
    "edit_modules": modules("transformer.h.{}.mlp.fc_out", range(18, 27)),
    "half": True,
}
# hparams/llama3-8b.yaml (github ICT-STAR/LocFT).
LOCFT_LLAMA = {
    "model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct",
    "data_path": "./data/zsre/zsre_3k.json",
    "save_model_dir": "./saves/llama_zsre3k",
    "layer": 22,
    "rewrite_module": "model.layers.{}.mlp.down_proj.weight",
    "lr": 5.0e-4,
    "batch_size": 100,
    "num_steps": 25,
    "device": 0,
}


def test_files_of_ultraedit_and_locft_are_read(tmp_path):
    published = UltraEditConfig.for_model("gpt-j-6b")
    with pytest.warns(EditWarning, match="UltraEdit does not use alg_name, batch_size, batch_size"):
        assert hparams.read(write(tmp_path, ULTRAEDIT_J), UltraEditConfig) == published
    with pytest.warns(EditWarning, match=r"UltraEdit does not use half\.$"):
        assert hparams.read(write(tmp_path, ULTRAEDIT_J_AUTHORS), UltraEditConfig) == published
    gated = modules("model.layers.{}.mlp.gate_proj.weight", (18, 19))
    gated += modules("model.layers.{}.mlp.up_proj", (18, 19))
    config = hparams.read(write(tmp_path, {"inner_params": gated, "lr": 2e-6}), UltraEditConfig)
    assert config == UltraEditConfig((18, 19), leaves=(Leaf.MLP_GATE, Leaf.MLP_UP), lr=2e-6)
    with pytest.warns(EditWarning, match="LocFT does not use data_path, device, save_model_dir"):
        config = hparams.read(write(tmp_path, LOCFT_LLAMA), LocFTConfig)
    assert config == LocFTConfig.for_model("meta-llama-3-8b-instruct")
    # Where a file is silent, the authors' defaults apply.
    short = {"layer": 3, "rewrite_module": "transformer.h.{}.mlp.c_proj.weight"}
    config = hparams.read(write(tmp_path, short), LocFTConfig)
    assert config == LocFTConfig(3, lr=5e-5, batch_size=8, num_steps=20)


@pytest.mark.parametrize(
    ("config_type", "changes", "message"),
    [
        (
            UltraEditConfig,
            {
                "inner_params": [
                    *modules("model.layers.{}.mlp.gate_proj", (11, 12)),
                    *modules("model.layers.{}.mlp.up_proj", (18,)),
                ]
            },
            r"inner_params does not name the same weights .* \(MLP_GATE of 11, 12; MLP_UP of 18\)",
        ),
        (
            UltraEditConfig,
            {"inner_params": ["language_model.model.layers.52.mlp.up_proj"]},
            "inner_params names 'language_model.model.layers.52.mlp.up_proj', which is not",
        ),
        (UltraEditConfig, {"inner_params": ["transformer.wte"]}, "names 'transformer.wte', which"),
        (UltraEditConfig, {"edit_modules": []}, "both inner_params and edit_modules name"),
        (UltraEditConfig, {"inner_params": []}, "name at least one layer"),
        (UltraEditConfig, {"inner_params": "all"}, "inner_params='all': give a list"),
        (UltraEditConfig, {"token": "ans"}, "token=ans is not supported: set it to mask"),
        (UltraEditConfig, {"dropout": 0.1}, r"dropout=0\.1 is not supported: set it to 0"),
        (UltraEditConfig, {"no_grad_layers": 3}, "no_grad_layers=3: give null"),
        (UltraEditConfig, {"layers": [3]}, "no hyperparameter layers"),
        (UltraEditConfig, {"alg_name": "MALMEN"}, "alg_name='MALMEN' is not UltraEdit"),
        (LocFTConfig, {"rewrite_module": "model.layers.{}"}, "is not supported: name the kernel"),
        (
            LocFTConfig,
            {"rewrite_module": "model.layers.{}.mlp.down_proj"},  # which would train a bias, too
            "is not supported: name the kernel",
        ),
        (LocFTConfig, {"rewrite_module_tmp": "model.layers.{}.mlp"}, "no hyperparameter rewrite_m"),
        (LocFTConfig, {"layer": [3, 4]}, "layer=.*: give an integer"),
        (LocFTConfig, {"leaves": ["MLP_UP"]}, "no hyperparameter leaves"),
    ],
)
def test_what_ultraedit_and_locft_cannot_do_is_refused(tmp_path, config_type, changes, message):
    content = ULTRAEDIT_J if config_type is UltraEditConfig else LOCFT_LLAMA
    with pytest.raises(ValueError, match=message):
        hparams.read(write(tmp_path, content | changes), config_type)


def test_second_moments_are_asked_for_by_methods_that_use_them():
    config = ROMEConfig.for_model("gpt2-xl")
    with pytest.raises(ValueError, match="no second moments come with model 'gpt2-xl'"):
        resources.check_second_moments("shipped", "gpt2-xl", config)
    for source in (None, "published", "self"):
        resources.check_second_moments(source, "gpt2-xl", config)
    resources.check_second_moments(
        "shipped", "gpt2-xl", ROMEConfig.for_model("gpt2-xl", mom2_adjustment=False)
    )
    resources.check_second_moments("shipped", "gpt2-xl", FTConfig.for_model("gpt2-xl"))
    resources.check_second_moments("shipped", "factworld-gpt2", config)
    with pytest.raises(
        ValueError, match=r"P\.pt holds AlphaEdit's projections .* which ROME needs"
    ):
        resources.check_second_moments("P.pt", "gpt2-xl", config)
    resources.check_second_moments("P.pt", "gpt2-xl", FTConfig.for_model("gpt2-xl"))


def test_null_spaces_need_torch(monkeypatch):
    config = AlphaEditConfig.for_model("gpt2-xl")
    monkeypatch.setattr(extras, "is_installed", lambda package: package == "torch")
    resources.check_second_moments("P.pt", "gpt2-xl", config)
    monkeypatch.setattr(extras, "is_installed", lambda package: False)
    with pytest.raises(ImportError, match=r"second_moments=P\.pt, .* needs torch: pip install"):
        resources.check_second_moments("P.pt", "gpt2-xl", config)


@pytest.mark.parametrize("algorithm", MethodName)
def test_every_method_has_hyperparameters_for_the_embedded_models(algorithm):
    for model in ("factworld-gpt2", "factworld-gptj"):
        assert methods.METHODS[algorithm].for_model(model).layers
