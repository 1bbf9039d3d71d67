"""Random models of transformers compared with ours: the same logits from their files and from files that we write."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from rome_jax.data.tokens import pad
from rome_jax.files.safetensors_io import CheckpointError, read_header
from rome_jax.models import convert_torch, forward, transformer
from rome_jax.models.export import save_hf
from rome_jax.models.families import from_hf
from rome_jax.models.huggingface import load_params, save_params
from rome_jax.models.interventions import Site
from rome_jax.models.registry import load_model
from tests.models.checkpoints import GOLDEN, assert_same_params

pytestmark = pytest.mark.parity

_COMMON = {"vocab_size": 60, "n_positions": 24, "n_embd": 40, "n_layer": 3, "n_head": 5}
_COMMON |= {"bos_token_id": 1, "eos_token_id": 2}
_LLAMA = {
    "vocab_size": 60,
    "max_position_embeddings": 24,
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 56,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_NEOX = {name: value for name, value in _LLAMA.items() if name != "num_key_value_heads"}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 12,
}
CONFIGS = {
    "llama with shared keys": LlamaConfig(**_LLAMA),
    "llama with biases and a tied head": LlamaConfig(
        **_LLAMA, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "llama 3 with scaled rotation": LlamaConfig(
        **_LLAMA, rope_theta=500.0, rope_scaling=_LLAMA3, rms_norm_eps=1e-5
    ),
    "llama with linear scaling and wide heads": LlamaConfig(
        **_LLAMA, head_dim=16, rope_scaling={"rope_type": "linear", "factor": 2.0}
    ),
    "mistral": MistralConfig(**_LLAMA, sliding_window=None),
    "qwen2": Qwen2Config(**_LLAMA, tie_word_embeddings=True),
    "qwen3 with narrow heads": Qwen3Config(**_LLAMA, head_dim=6),
    "neox": GPTNeoXConfig(**_NEOX, rotary_pct=0.4),
    "neox in sequence": GPTNeoXConfig(**_NEOX, rotary_pct=1.0, use_parallel_residual=False),
    "gpt2 with 5 heads of 8": GPT2Config(**_COMMON, n_inner=100),
    "gpt2 with one wide head and relu": GPT2Config(
        **_COMMON | {"n_head": 1}, activation_function="relu"
    ),
    "gpt2 with an untied head and gelu": GPT2Config(
        **_COMMON, tie_word_embeddings=False, activation_function="gelu", n_inner=7
    ),
    "gpt2 with scores divided by the layer's number": GPT2Config(
        **_COMMON, scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True
    ),
    "gpt2 with unscaled scores": GPT2Config(**_COMMON, scale_attn_weights=False),
    "gpt2 with a large epsilon": GPT2Config(**_COMMON, layer_norm_epsilon=0.1),
    "gptj with half of each head rotated": GPTJConfig(**_COMMON, rotary_dim=4, n_inner=56),
    "gptj with whole heads rotated": GPTJConfig(**_COMMON, rotary_dim=8),
    "gptj with one rotated pair and relu": GPTJConfig(
        **_COMMON, rotary_dim=2, activation_function="relu"
    ),
    "gptj with a tied head and silu": GPTJConfig(
        **_COMMON, rotary_dim=6, tie_word_embeddings=True, activation_function="silu"
    ),
}
SEQUENCES = [list(range(3, 27)), [5, 5, 9, 58, 0, 31, 7], [59]]


def random_model(config):
    """Builds a model with weights large enough that any wrong bias, scale or order changes the logits visibly."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


def logits_of_theirs(model, sequences=SEQUENCES):
    """Computes the float32 logits of each sequence alone."""
    for parameter in model.parameters():
        # torch's order of summation depends on the alignment of a tensor in its memory-mapped file.
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        return [model(torch.tensor([sequence])).logits[0].numpy() for sequence in sequences]


def logits_of_ours(params, config, sequences=SEQUENCES):
    """Computes the logits of each sequence from one padded batch."""
    batch = pad(sequences)
    out = np.asarray(forward.logits(params, config, batch))
    return [out[row, : len(sequence)] for row, sequence in enumerate(sequences)]


@pytest.fixture(scope="module", params=CONFIGS)
def theirs(request, tmp_path_factory):
    """A model of transformers and the directory that it wrote."""
    directory = tmp_path_factory.mktemp("model")
    model = random_model(CONFIGS[request.param])
    model.save_pretrained(directory)
    return model, directory


def test_attention_patterns_agree(theirs):
    model, directory = theirs
    ours = forward.capture(*load_ours(directory), pad(SEQUENCES), (Site.ATTN_PATTERN,))
    for row, sequence in enumerate(SEQUENCES):
        with torch.no_grad():
            out = model(torch.tensor([sequence]), output_attentions=True)
        want = torch.stack(out.attentions)[:, 0].numpy()  # [L, H, T, T]
        got = np.asarray(ours[Site.ATTN_PATTERN])[:, row, :, : len(sequence), : len(sequence)]
        np.testing.assert_allclose(got, want, atol=1e-5)


def load_ours(directory):
    config = from_hf(json.loads((directory / "config.json").read_text()))
    return load_params(directory, config), config


def test_logits_agree(theirs):
    model, directory = theirs
    for got, want in zip(
        logits_of_ours(*load_ours(directory)), logits_of_theirs(model), strict=True
    ):
        assert np.abs(got - want).max() <= 1e-4 * want.std()


def test_left_padded_batches_agree(theirs):
    model, directory = theirs
    batch = pad(SEQUENCES, left=True)
    mask = torch.tensor(batch.mask, dtype=torch.long)
    with torch.no_grad():
        want = model(
            torch.tensor(batch.ids, dtype=torch.long),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        ).logits.numpy()
    got = np.asarray(forward.logits(*load_ours(directory), batch))
    assert np.abs(got - want)[batch.mask].max() <= 1e-4 * want.std()


def test_transformers_loads_what_we_save_with_identical_logits(theirs, tmp_path):
    model, directory = theirs
    params, config = load_ours(directory)
    save_params(tmp_path, params, config, {"bos_token_id": 1, "eos_token_id": 2})
    loaded, report = AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, want in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], want), name
    for got, want in zip(logits_of_theirs(loaded), logits_of_theirs(model), strict=True):
        assert np.array_equal(got, want)
    assert_same_params(load_ours(tmp_path)[0], params)
    assert loaded.config.eos_token_id == loaded.generation_config.eos_token_id == 2


@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_a_saved_directory_is_complete_for_transformers(family, tmp_path):
    """transformers loads the tokenizer too, and generates the same text."""
    from transformers import AutoTokenizer

    source = GOLDEN / "ckpt" / family
    save_hf(tmp_path, load_model(source))
    texts = []
    for directory in (source, tmp_path):
        tokenizer = AutoTokenizer.from_pretrained(directory)
        model = AutoModelForCausalLM.from_pretrained(directory)
        inputs = tokenizer("The mother tongue of", return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)
        texts.append(tokenizer.decode(out[0]))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_kept_both_ways(dtype, tmp_path):
    model = random_model(CONFIGS["gptj with half of each head rotated"]).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "theirs")
    params, config = load_ours(tmp_path / "theirs")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    save_params(tmp_path / "ours", params, config)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert loaded.dtype == model.dtype
    for name, want in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], want), name


# pytorch_model.bin


@pytest.fixture
def binary(tmp_path, monkeypatch):
    """A directory with only pytorch_model.bin, its config, and its params."""
    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path / "cache"))
    model = random_model(CONFIGS["gptj with half of each head rotated"])
    model.save_pretrained(tmp_path / "safetensors")
    params, config = load_ours(tmp_path / "safetensors")
    directory = tmp_path / "binary"
    directory.mkdir()
    # Like the file on the hub, it has the masks that old versions saved.
    state = model.state_dict() | {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 24, 24, dtype=torch.bool),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e9),
    }
    torch.save(state, directory / "pytorch_model.bin")
    return directory, config, params


def converted(directory):
    return sorted((directory / ".rome_jax").glob("*"))


def test_a_pickle_is_converted_once(binary, monkeypatch):
    directory, config, params = binary
    assert_same_params(load_params(directory, config), params)
    (file,) = converted(directory)
    assert read_header(file)["transformer.h.0.attn.bias"].dtype == bool
    monkeypatch.setattr(convert_torch, "_load", None)  # would be called a second time
    assert_same_params(load_params(directory, config), params)


def test_a_changed_pickle_is_converted_again(binary):
    directory, config, params = binary
    load_params(directory, config)
    state = torch.load(directory / "pytorch_model.bin")
    state["lm_head.bias"] += 1
    torch.save(state, directory / "pytorch_model.bin")
    bias = load_params(directory, config)["lm_head"]["bias"]
    assert jnp.array_equal(bias, params["lm_head"]["bias"] + 1)


def test_a_directory_that_cannot_be_written_uses_the_cache(binary, monkeypatch, tmp_path):
    directory, config, params = binary
    writable = convert_torch._writable
    monkeypatch.setattr(
        convert_torch, "_writable", lambda path: directory not in path.parents and writable(path)
    )
    assert_same_params(load_params(directory, config), params)
    assert not converted(directory)
    assert len(list((tmp_path / "cache" / "converted").iterdir())) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_the_old_format_are_converted(binary, dtype):
    directory, config, params = binary
    state = torch.load(directory / "pytorch_model.bin")
    state = {name: x.to(dtype) if x.is_floating_point() else x for name, x in state.items()}
    torch.save(state, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    name = str(dtype).removeprefix("torch.")
    assert_same_params(
        load_params(directory, config), jax.tree.map(lambda leaf: leaf.astype(name), params)
    )


def test_sharded_pickles_are_converted(binary):
    directory, config, params = binary
    state = torch.load(directory / "pytorch_model.bin")
    (directory / "pytorch_model.bin").unlink()
    weight_map = {}
    for i in range(2):
        file = f"pytorch_model-{i + 1:05}-of-00002.bin"
        part = dict(list(state.items())[i::2])
        torch.save(part, directory / file)
        weight_map |= dict.fromkeys(part, file)
    index = directory / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_same_params(load_params(directory, config), params)
    (directory / file).unlink()
    with pytest.raises(CheckpointError, match=f"lacks {file}"):
        load_params(directory, config)


class Unsafe:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-2000]),
        lambda path: path.write_bytes(b"not a pickle"),
        lambda path: path.write_bytes(b""),
        lambda path: torch.save({"transformer.wte.weight": Unsafe()}, path),
        lambda path: torch.save({"weights": {"a": torch.zeros(1)}}, path),
        lambda path: torch.save([torch.zeros(1)], path),
    ],
)
def test_damaged_and_unsafe_pickles_are_refused(binary, spoil):
    directory, config, _ = binary
    spoil(directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is damaged or holds more"):
        load_params(directory, config)
    assert not converted(directory)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_weights_inside_a_training_checkpoint_are_named_with_the_remedy(binary, key):
    directory, config, _ = binary
    state = torch.load(directory / "pytorch_model.bin")
    torch.save({key: state, "epoch": 3}, directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=rf"weights under '{key}': save these alone"):
        load_params(directory, config)


def test_a_damaged_conversion_is_done_again(binary):
    directory, config, params = binary
    load_params(directory, config)
    (file,) = converted(directory)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert_same_params(load_params(directory, config), params)


def test_the_module_computes_scores_divided_by_the_layers_number():
    config = from_hf(CONFIGS["gpt2 with scores divided by the layer's number"].to_dict())
    assert config.scale_by_layer and config.upcast_attention
    params = transformer.init_params(config, jax.random.key(0))
    batch = pad(SEQUENCES)
    got = transformer.Transformer(config).apply(
        {"params": params}, batch.ids, jnp.asarray(batch.mask)
    )
    want = forward.logits(params, config, batch)
    np.testing.assert_allclose(got[0], want[0], atol=1e-5)
