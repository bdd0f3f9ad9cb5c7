"""Checkpoint directories by whoever: every tensor present, of its shape, finite; shards that stay where they belong; EOS ids."""

import dataclasses
import json
import os

import numpy as np
import paceline
import pytest
from checkpoint_writer import tensor_shapes, write_checkpoint
from oracle_models import shape
from paceline import _core
from paceline.bundled import demo_pair
from paceline.loading import checkpoint, load_weights, read_config

KINDS = {
    "llama": shape("llama", 2, 1, 16, vocab=40, rope_theta=10000.0, attention_bias=True), "qwen2": shape("qwen2", 2, 2, 16, vocab=40, tied=True),
    "qwen3": shape("qwen3", 2, 1, 16, vocab=40)}
EVERY_TENSOR = [(kind, name) for kind, config in KINDS.items() for name, _ in tensor_shapes(config)]


def write(directory, config, change=lambda name, values: values, dtype="F32", shards=1):
    """A random checkpoint. change(name, values) gives other values, or None to leave the tensor out."""
    tensors = []
    for i, (name, size) in enumerate(tensor_shapes(config)):
        values = change(name, np.random.default_rng(i).standard_normal(size).astype(np.float32))
        if values is not None:
            tensors.append((name, values.shape, lambda values=values: values))
    write_checkpoint(directory, config, tensors, dtype, shards)
    return directory


def load(directory, dtype="fp32"):
    return load_weights(_core.Backend(1, ""), read_config(directory), dtype)


def refusal(directory):
    with pytest.raises(paceline.ModelFileError) as caught:
        load(directory)
    assert str(directory) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype, stored", [("F32", "fp32"), ("F16", "fp16"), ("BF16", "bf16")])
def test_dtypes(tmp_path, dtype, stored):
    write(tmp_path, KINDS["llama"], dtype=dtype)
    assert read_config(tmp_path).dtype == stored and load(tmp_path).nbytes == 2 * load(tmp_path, "bf16").nbytes - _vector_bytes()


def _vector_bytes():
    """Norms and biases are fp32 in either: 5 norms of 32, and q, k, v and o biases of two layers, k and v padded to 16."""
    return 4 * (5 * 32 + 2 * (32 + 16 + 16 + 32))


@pytest.mark.parametrize("kind, name", EVERY_TENSOR)
def test_every_tensor_must_be_there_and_of_its_shape(tmp_path, kind, name):
    write(tmp_path / "missing", KINDS[kind], lambda n, v: None if n == name else v)
    assert f"tensor {name}: expected shape" in refusal(tmp_path / "missing") and "found nothing" in refusal(tmp_path / "missing")
    write(tmp_path / "longer", KINDS[kind], lambda n, v: np.concatenate([v, v[:1]]) if n == name else v)
    assert f"tensor {name}: expected shape" in refusal(tmp_path / "longer")


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.input_layernorm.weight", "lm_head.weight"])
def test_a_value_that_is_not_finite_is_named(tmp_path, dtype, bad, name):
    def spoil(n, values):
        if n == name:
            values.flat[-1] = bad
            return values if dtype != "BF16" else (values.view(np.uint32) >> 16).astype(np.uint16)
        return values
    write(tmp_path, KINDS["llama"], spoil, dtype)
    assert f"tensor {name}: expected finite values" in refusal(tmp_path)


def test_tensors_that_no_network_here_has(tmp_path):
    write(tmp_path, KINDS["qwen2"])
    extra = lambda name: write_extra(tmp_path, KINDS["qwen2"], name)  # noqa: E731
    assert "expected no such tensor in Qwen2ForCausalLM" in refusal(extra("model.layers.0.mlp.experts.0.up_proj.weight"))
    load(extra("model.layers.0.self_attn.rotary_emb.inv_freq"))  # what old checkpoints carry along
    load(extra("lm_head.weight"))  # tied: a copy of the embedding


def write_extra(directory, config, name):
    tensors = [(n, tuple(s), lambda s=s: np.zeros(s, np.float32)) for n, s in tensor_shapes(config)]
    write_checkpoint(directory, config, [*tensors, (name, (4,), lambda: np.zeros(4, np.float32))], "F32")
    return directory


def test_integers_are_not_weights(tmp_path):
    write(tmp_path, KINDS["llama"])
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"', 1))
    assert "expected dtype F32, F16, BF16, found I32" in refusal(tmp_path)


@pytest.mark.parametrize("edit, complaint", [
    (lambda index, d: index["weight_map"].update(nobody="model-00001-of-00003.safetensors"), "tensor nobody: expected in model-00001"),
    (lambda index, d: index["weight_map"].pop("model.norm.weight"), "tensor model.norm.weight: expected in no shard"),
    (lambda index, d: index["weight_map"].update({"model.norm.weight": "model-00002-of-00003.safetensors"}), "tensor model.norm.weight: expected in model-00002"),
    (lambda index, d: index["weight_map"].update(x="../x.safetensors"), "expected the plain name"),
    (lambda index, d: index["weight_map"].update(x="/etc/x.safetensors"), "expected the plain name"),
    (lambda index, d: index["weight_map"].update(x="x.bin"), "expected the plain name"), (lambda index, d: index.update(weight_map=[]), "weight_map"),
    (lambda index, d: index["weight_map"].update(x=3), "weight_map"), (lambda index, d: (d / "model-00002-of-00003.safetensors").unlink(), "found nothing"),
    (lambda index, d: os.replace(d / "model-00002-of-00003.safetensors", d / "model-00001-of-00003.safetensors"), "expected in")])
def test_shards(tmp_path, edit, complaint):
    write(tmp_path, KINDS["llama"], shards=3)
    load(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index, tmp_path)
    path.write_text(json.dumps(index))
    assert complaint in refusal(tmp_path)


@pytest.mark.parametrize("generation, config, expected", [
    (5, 2, (5,)), ([5, 6, 5], 2, (5, 6)), (None, 2, (2,)), (None, [2, 3], (2, 3)), (None, None, ()), ([], 2, ())])
def test_eos_ids(tmp_path, generation, config, expected):
    write(tmp_path, KINDS["llama"] | {"eos_token_id": config})
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert read_config(tmp_path).eos_token_ids == expected


@pytest.mark.parametrize("eos", ["2", -1, 1.5, [True], {}])
def test_a_bad_eos_is_named(tmp_path, eos):
    write(tmp_path, KINDS["llama"] | {"eos_token_id": eos})
    assert "eos_token_id" in refusal(tmp_path)


def test_only_safetensors_are_read(tmp_path):
    write(tmp_path, KINDS["llama"])
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "found pytorch_model.bin; no other format is read" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1, "a": 2}', '{"a": ' + "[" * 2000 + "]" * 2000 + "}", '{"a": NaN}', "\ufeff{}"])
def test_a_broken_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert "config.json" in refusal(tmp_path)


def test_no_directory(tmp_path):
    assert "expected a regular file, found nothing" in refusal(tmp_path / "nowhere")


def test_a_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    write(tmp_path, KINDS["llama"])
    found = read_config(tmp_path)
    path = tmp_path / "model.safetensors"
    monkeypatch.setattr(checkpoint, "_refuse_another", lambda *_: None)  # after it has looked
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(paceline.ModelFileError, match="the file has become shorter"):
        load_weights(_core.Backend(1, ""), found, "fp32")


@pytest.mark.parametrize("dtype", ["bf16", "int4"])
def test_a_tensor_in_parts_is_the_tensor(dtype, monkeypatch):
    """Large tensors are staged some rows at a time; here a few kilobytes."""
    def logprobs():
        with paceline.Engine(demo_pair()[0], dtype=dtype, warmup=False) as engine:
            return engine.verify([5], list(range(40, 60))).logprobs

    whole = logprobs()
    monkeypatch.setattr(checkpoint, "STAGING", 1 << 12)
    assert np.array_equal(logprobs(), whole)


def test_parts_come_in_order_and_once(tmp_path):
    write(tmp_path, KINDS["llama"])
    config = read_config(tmp_path)
    weights = _core.Weights(_core.Backend(1, ""), _core.ModelConfig(**dataclasses.asdict(config.config)), "fp32", "here")
    name, (rows, width) = next((name, shape) for name, shape in weights.expected() if len(shape) == 2 and shape[0] >= 64)

    def load(first, count):
        weights.load(name, "fp32", (count, width), np.zeros(count * width * 4, np.uint8), first)

    for first, count in ((16, 16), (0, 15), (0, rows + 1)):
        with pytest.raises(paceline.ModelFileError, match=f"tensor {name}: expected shape .* from row 0 on, found"):
            load(first, count)
    load(0, 32)
    with pytest.raises(paceline.ModelFileError, match="it was loaded before"):
        load(16, 16)
    with pytest.raises(paceline.ModelFileError, match="from row 32 on"):
        load(48, rows - 48)
    load(32, rows - 32)
    with pytest.raises(paceline.ModelFileError, match="it was loaded before"):
        load(0, rows)
