"""Published checkpoints: files in the published layout, read and compared with PyTorch's arithmetic."""

import dataclasses
import pickle
import re
import sys

import jax
import numpy as np
import pytest

from rome_jax.data.tokens import TokenBatch
from rome_jax.edit.baseline_config import KEConfig, MENDConfig, RateOrder
from rome_jax.edit.config import MethodName
from rome_jax.edit.delta import dense
from rome_jax.edit.hypernetworks import released as released_hypernetworks
from rome_jax.edit.hypernetworks import training as hypernetwork_training
from rome_jax.edit.methods import ke, mend
from rome_jax.edit.stages.gradients import gradient_factors
from rome_jax.edit.stages.targets import tokenize_targets
from rome_jax.files.extras import MissingPackageError
from rome_jax.files.safetensors_io import CheckpointError
from rome_jax.models.config import Family
from rome_jax.models.convert_torch import read_tensors
from rome_jax.models.interventions import Leaf
from rome_jax.models.registry import LanguageModel
from tests.models.checkpoints import random_params, tiny_config

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

MEND = MENDConfig((1, 2), rank=4)
KE = KEConfig((1, 2), lstm_width=5, condition_width=6, hidden_width=7, max_scale=2.0)
WIDTH, MLP_WIDTH = 18, 40
SIZES = {Leaf.MLP_UP: (WIDTH, MLP_WIDTH), Leaf.MLP_DOWN: (MLP_WIDTH, WIDTH)}
# The order of each layer's rates in the file.
RATES = [(layer, leaf) for layer in MEND.layers for leaf in (Leaf.MLP_DOWN, Leaf.MLP_UP)]

ran = []


def note(what):
    """Records that code of a pickle ran."""
    ran.append(what)


class Foreign:
    """An object of another package in a checkpoint; loading it would run code of its class."""

    def __init__(self, what):
        self.what = what

    def __setstate__(self, state):
        note(state)


class Calling:
    """An object that calls a function when it is loaded."""

    def __reduce__(self):
        return note, ("called",)


class Names(list):
    """A list of another class."""


def random(*shape, scale=0.3):
    return scale * torch.randn(*shape)


def save(path, state, **changes):
    """Saves a checkpoint like the training code, with further objects that it might contain."""
    content = {
        "model": state,
        "opt": {
            "state": {0: {"step": 3, "exp_avg": torch.ones(2)}},
            "param_groups": [{"lr": 1e-6}],
        },
        "lr_opt": None,
        "val_stats": {"loss/total": np.float64(1.5)},
        "start_time": "2021-10-01",
        "elapsed_time": 12.0,
        "step": 100,
        "config": Foreign("config"),
        "names": Names(["a"]),
        "called": Calling(),
    }
    torch.save(content | changes, path)
    return path


def mend_state(prefix="gtn."):
    torch.manual_seed(0)
    state = {"edit_lrs": -0.01 * torch.rand(4) - 0.01}
    for x, y in SIZES.values():
        key, size = f"{prefix}({x}, {y})", x + y
        for name, width, unit in (("u", x, 1.0), ("v", y, 0.05)):
            state[f"{key}.{name}_mean"] = random(width, scale=0.3 * unit)
            state[f"{key}.{name}_std"] = unit * (0.5 + torch.rand(width))
            state[f"{key}.{name}_s"] = state[f"{key}.{name}_std"] ** 2 * 49
        state[f"{key}.k"] = torch.tensor([50.0])
        for index in range(2):
            layer = f"{key}.mlp.layers.{index}"
            state[f"{layer}.u"] = random(size, 4)
            state[f"{layer}.v"] = random(4, size)
            state[f"{layer}.bias"] = random(size)
            state[f"{layer}.mode_shift.weight"] = random(2, size)
            state[f"{layer}.mode_scale.weight"] = 1 + random(2, size)
    state["model_config"] = Foreign("model_config")
    return state


class Conditioners(torch.nn.Module):
    """The parts of the published KE that hold tensors, under their published names."""

    def __init__(self):
        super().__init__()
        editor = torch.nn.Module()
        condition = torch.nn.Module()
        condition.embedding = torch.nn.Embedding(2001, WIDTH)  # a padding token was added
        condition.lstm = torch.nn.Module()
        condition.lstm._module = torch.nn.LSTM(WIDTH, 5, bidirectional=True, batch_first=True)
        condition.linear = torch.nn.Module()
        condition.linear._linear_layers = torch.nn.ModuleList([torch.nn.Linear(10, 6)])
        editor.condition = condition
        editor.conditioners = torch.nn.ModuleDict()
        normed = torch.nn.utils.weight_norm
        for layer in KE.layers:
            for name, leaf in (("c_fc", Leaf.MLP_UP), ("c_proj", Leaf.MLP_DOWN)):
                conditioner = torch.nn.Module()
                conditioner.conditioners = torch.nn.Sequential(
                    normed(torch.nn.Linear(6, 7)),
                    torch.nn.Tanh(),
                    normed(torch.nn.Linear(7, 2 * sum(SIZES[leaf]) + 1)),
                )
                key = f"transformer_h_{layer}_mlp_{name}_weight_conditioner"
                editor.conditioners[key] = conditioner
        self.editor = editor

    def condition(self, ids):
        """[T] -> [1, C]."""
        parts = self.editor.condition
        _, (states, _) = parts.lstm._module(parts.embedding(ids[None]))
        joined = torch.cat([states[0], states[1]], dim=-1)
        return torch.tanh(parts.linear._linear_layers[0](joined))

    def change(self, seen, layer, leaf, gradient):
        """ΔW of a Conv1D weight [in, out]."""
        name = "c_fc" if leaf is Leaf.MLP_UP else "c_proj"
        key = f"transformer_h_{layer}_mlp_{name}_weight_conditioner"
        rows, columns = gradient.shape
        found = self.editor.conditioners[key].conditioners(seen)
        col_a, row_a, col_b, row_b, norm = found.split([columns, rows, columns, rows, 1], dim=-1)
        a, b = row_a.softmax(-1).T @ col_a, row_b.softmax(-1).T @ col_b
        return KE.max_scale * norm.sigmoid().squeeze() * (gradient * a + b)


@pytest.fixture(scope="module")
def published_ke():
    torch.manual_seed(0)
    module = Conditioners()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module


@pytest.fixture(scope="module")
def factors(model, requests):
    texts = [r.text for r in requests], [r.target_text for r in requests]
    inputs = tokenize_targets(model.tokenizer, *texts, 64)
    return gradient_factors(model.params, model.config, inputs, MEND.layers, MEND.leaves)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return save(tmp_path_factory.mktemp("mend") / "mend-10tok-gpt2-xl.pt", mend_state())


def factor(found, index, layer):
    """x and δ of one request at one layer, as tensors."""
    row = MEND.layers.index(layer)
    return (torch.tensor(np.asarray(value[index, row])) for value in (found.x, found.delta))


def close(got, want, tolerance=1e-5):
    want = want.detach().numpy()
    return np.abs(np.asarray(got) - want).max() <= tolerance * np.abs(want).max()


def check(deltas, count, change_of):
    assert len(deltas) == count
    for update in deltas.updates:
        layer = int(update.layer[0])
        for index, change in enumerate(dense(update)):
            assert close(change, change_of(index, layer, update.leaf)), (index, layer, update.leaf)


# MEND


def torch_mend(state, factors, index, layer, leaf, rate):
    """ΔW of the published rule."""
    u, v = factor(factors[leaf.name], index, layer)
    keep = (u != 0).any(-1) & (v != 0).any(-1)
    key = f"gtn.({u.shape[-1]}, {v.shape[-1]})"
    parts = [
        (value[keep] - state[f"{key}.{name}_mean"]) / (state[f"{key}.{name}_std"] + 1e-7)
        for name, value in (("u", u), ("v", v))
    ]
    z = torch.cat(parts, -1)
    mode = MEND.layers.index(layer)
    for number in range(2):
        own = {
            name: state[f"{key}.mlp.layers.{number}.{name}"]
            for name in ("u", "v", "bias", "mode_scale.weight", "mode_shift.weight")
        }
        inner = (own["u"] @ (own["v"] @ z.T)).T + own["bias"]
        inner = inner * own["mode_scale.weight"][mode] + own["mode_shift.weight"][mode]
        z = inner.clamp(min=0) + z
    new_u, new_v = z.split([u.shape[-1], v.shape[-1]], -1)
    return rate * new_u.T @ new_v


@pytest.mark.parametrize("order", RateOrder)
def test_mend_edits_like_the_published_code(model, requests, factors, file, order):
    config = dataclasses.replace(MEND, rate_order=order)
    network = released_hypernetworks.read(file, model, config)
    assert (network.kind, network.config, network.model) == (MethodName.MEND, config, "tiny")
    assert network.fingerprint is None and network.about == {"file": "mend-10tok-gpt2-xl.pt"}
    state = mend_state()

    def change_of(index, layer, leaf):
        other = {Leaf.MLP_UP: Leaf.MLP_DOWN, Leaf.MLP_DOWN: Leaf.MLP_UP}[leaf]
        rated = leaf if order is RateOrder.TRAINED else other
        rate = state["edit_lrs"][RATES.index((layer, rated))]
        return torch_mend(state, factors, index, layer, leaf, rate)

    deltas = mend.compute_deltas(model, requests, config, hypernetwork=network)
    check(deltas, 3, change_of)


def test_the_rates_of_gptj_are_in_the_order_of_the_model(model, file):
    config = dataclasses.replace(MEND, leaves=(Leaf.MLP_UP, Leaf.MLP_DOWN))
    listed = mend_state()["edit_lrs"].numpy().reshape(len(MEND.layers), 2)
    gptj = dataclasses.replace(model.config, family=Family.GPTJ)
    for read_for, expected in ((model.config, listed[:, ::-1]), (gptj, listed)):
        network = released_hypernetworks.read(
            file, dataclasses.replace(model, config=read_for), config
        )
        np.testing.assert_array_equal(network.variables["params"]["rates"], expected)


def test_both_published_names_of_the_networks_are_read(model, file, tmp_path):
    renamed = save(tmp_path / "renamed.pt", mend_state("mend."))
    found = released_hypernetworks.read(renamed, model, MEND).variables
    want = released_hypernetworks.read(file, model, MEND).variables
    assert jax.tree.structure(found) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, found, want)


def test_one_leaf_alone(model, tmp_path):
    state = mend_state()
    config = dataclasses.replace(MEND, leaves=(Leaf.MLP_DOWN,))
    state["edit_lrs"] = torch.tensor([-0.1, -0.2])
    found = released_hypernetworks.read(save(tmp_path / "a.pt", state), model, config).variables
    assert list(found["statistics"]) == ["MLP_DOWN"]
    np.testing.assert_allclose(found["params"]["rates"], [[-0.1], [-0.2]])


def test_gptj_has_the_same_names(tokenizer, file):
    config = tiny_config("gptj", vocab_size=2000, context_length=64)
    other = LanguageModel("tiny-j", config, random_params(config), tokenizer, "random")
    assert released_hypernetworks.read(file, other, MEND).model == "tiny-j"


# KE


def test_ke_edits_like_the_published_code(model, requests, factors, published_ke, tmp_path):
    path = save(tmp_path / "efk-1tok-gpt2-xl.pt", published_ke.state_dict())
    network = released_hypernetworks.read(path, model, KE)
    assert network.kind is MethodName.KE
    # The variables have the shapes of the linen module; the embedding has one more token than the model.
    own = hypernetwork_training.make_network(KE, dataclasses.replace(model.config, vocab_size=2001))
    condition = TokenBatch(np.zeros((3, 8), np.int32), np.ones((3, 8), bool))
    shapes = jax.eval_shape(own.init, jax.random.key(0), factors, condition)
    assert jax.tree.map(np.shape, network.variables) == jax.tree.map(np.shape, shapes)

    tokens = model.tokenizer([r.text + r.target_text for r in requests])["input_ids"]
    seen = [published_ke.condition(torch.tensor(ids)) for ids in tokens]

    def change_of(index, layer, leaf):
        u, v = factor(factors[leaf.name], index, layer)
        return published_ke.change(seen[index], layer, leaf, u.T @ v)

    deltas = ke.compute_deltas(model, requests, KE, hypernetwork=network)
    check(deltas, 3, change_of)


def test_ke_of_gptj_was_not_published(tokenizer, published_ke, tmp_path):
    config = tiny_config("gptj", vocab_size=2000, context_length=64)
    other = LanguageModel("tiny-j", config, random_params(config), tokenizer, "random")
    path = save(tmp_path / "ke.pt", published_ke.state_dict())
    with pytest.raises(ValueError) as error:
        released_hypernetworks.read(path, other, KE)
    assert str(error.value) == (
        "no KE checkpoint was published for the family of 'tiny-j', whose weights PyTorch keeps transposed: use a "
        "model of the GPT-2 family."
    )


# Files


def test_no_code_of_a_checkpoint_runs(file):
    ran.clear()
    found = read_tensors(file)
    assert not ran
    assert np.array_equal(found["opt/state/0/exp_avg"], [1.0, 1.0])
    np.testing.assert_array_equal(found["model/edit_lrs"], mend_state()["edit_lrs"])
    assert all(isinstance(value, np.ndarray) for value in found.values())
    torch.load(file, weights_only=False)  # this runs the code
    assert "called" in ran


def test_no_code_of_a_file_in_the_old_format_runs(tmp_path):
    """In the old format, the first pickle is the number of the format."""
    path = tmp_path / "old.pt"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert read_tensors(path)["a"].tolist() == [1.0, 1.0]
    path.write_bytes(pickle.dumps(Calling()))
    ran.clear()
    with pytest.raises(CheckpointError, match="is absent or damaged"):
        read_tensors(path)
    assert not ran


def refused(path, model, config, reason):
    with pytest.raises(ValueError) as error:
        released_hypernetworks.read(path, model, config)
    start = f"{path} is not a checkpoint of this method, model and configuration: "
    assert str(error.value) == start + reason


def test_an_absent_tensor_is_named(model, tmp_path):
    state = mend_state()
    del state["gtn.(18, 40).mlp.layers.1.bias"]
    reason = "(18, 40).mlp.layers.1.bias is absent, not 58."
    refused(save(tmp_path / "a.pt", state), model, MEND, reason)


def test_a_checkpoint_of_another_method(model, file):
    reason = "editor.condition.embedding.weight is absent, not any × 18."
    refused(file, model, KE, reason)


def test_a_checkpoint_of_another_shape(model, file):
    config = dataclasses.replace(MEND, rank=5)
    refused(file, model, config, "(18, 40).mlp.layers.0.u is 58 × 4, not 58 × 5.")
    config = dataclasses.replace(MEND, layers=(0, 1, 2))
    refused(file, model, config, "edit_lrs is 4, not 6.")


def test_a_ke_of_another_width(model, published_ke, tmp_path):
    path = save(tmp_path / "ke.pt", published_ke.state_dict())
    config = dataclasses.replace(KE, condition_width=8)
    reason = "editor.condition.linear._linear_layers.0.weight is 6 × 10, not 8 × 10."
    refused(path, model, config, reason)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-2000]),
        lambda path: path.write_bytes(b"not a pickle"),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
    ids="short other empty absent".split(),
)
def test_damaged_files(model, tmp_path, spoil):
    path = save(tmp_path / "mend.pt", mend_state())
    spoil(path)
    message = rf"^{re.escape(str(path))} is absent or damaged \(.*\): download it again\.$"
    with pytest.raises(CheckpointError, match=re.compile(message, re.DOTALL)):
        released_hypernetworks.read(path, model, MEND)


def test_without_torch_the_extra_is_named(model, file, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'rome_jax\[convert\]'\.$") as error:
        released_hypernetworks.read(file, model, MEND)
    assert str(file) in str(error.value)
