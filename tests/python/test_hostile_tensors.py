"""Tensors by somebody hostile, row by row (MF3 to MF6): every length, offset, shape and type. Each test names its row. Beside them:
test_safetensors.py (headers), test_checkpoint.py (tensors, shards)."""

import json
import os
import struct
import subprocess
import sys

import paceline
import pytest
from checkpoint_writer import tensor_shapes
from paceline import _core
from paceline.loading import read_config
from paceline.loading.checkpoint import core_config
from paceline.loading.safetensors import read_header
from test_checkpoint import EVERY_TENSOR, KINDS, load, refusal, write
from test_safetensors import ENTRY, file_of


# ---------------------------------------------------------------------------------------------------- MF3: lengths
MEASURE = """
import pathlib, resource, sys, paceline
from paceline.loading.safetensors import read_header
for good in sys.argv[1:2]:
    read_header(pathlib.Path(good))  # whatever the first one loads
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for bad in sys.argv[2:]:
    try:
        read_header(pathlib.Path(bad))
    except paceline.ModelFileError:
        continue
    sys.exit(bad)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_mf3_a_length_is_refused_before_it_is_given_room(tmp_path):
    """KB above the baseline. The files have holes: a gigabyte that takes no disk."""
    (tmp_path / "good").write_bytes(file_of({"a": ENTRY}))
    names = []
    for length, size in ((0, 24), (1, 24), (2**24 + 1, 2**30), (100 << 20, 2**30), (2**40, 2**30), (2**63 - 1, 64), (2**63, 64), (2**64 - 1, 64),
                         (2**64 - 8, 2**30), (2**24, 2**30)):
        path = tmp_path / str(len(names))
        path.write_bytes(struct.pack("<Q", length))
        os.truncate(path, size)
        names.append(path)
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path / "good", *names], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4096


# ---------------------------------------------------------------------------------------------------- MF4, MF5: offsets and shapes
def header_refused(tmp_path, header, data):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of(header, data))
    with pytest.raises(paceline.ModelFileError):
        read_header(path)


@pytest.mark.parametrize("offsets", [
    [[0, 24], [12, 36]], [[0, 24], [0, 24]], [[0, 24], [28, 52]], [[24, 0], [24, 48]], [[4, 28], [28, 52]], [[0, 24], [24, 72]], [[-24, 0], [0, 24]],
    [[0, 24.0], [24, 48]], [[0, 1e300], [24, 48]], [[0, 24], [24, 2**53 + 1]], [[0, 24], [2**64, 2**64 + 24]], [[0, "24"], [24, 48]],
    [[0, 24], [24, 48, 72]], [[0, 24], None], [[0, True], [24, 48]]])
def test_mf4_offsets_that_do_not_tile_the_file(tmp_path, offsets):
    header_refused(tmp_path, {name: ENTRY | {"data_offsets": each} for name, each in zip("ab", offsets, strict=True)}, b"\0" * 48)


def test_mf4_unsorted_offsets_are_legal(tmp_path):
    (tmp_path / "x").write_bytes(file_of({"b": ENTRY | {"data_offsets": [24, 48]}, "a": ENTRY}, b"\0" * 48))
    assert [read_header(tmp_path / "x")[name].begin - read_header(tmp_path / "x")["a"].begin for name in "ab"] == [0, 24]


@pytest.mark.parametrize("shape", [
    [2**32, 2**32], [2**32 - 1, 2**32 + 1], [2**31, 2**31, 4], [2**63], [2**63 - 1], [2**63 + 1], [2**64], [2**64 + 6], [2**62, 4, 6], [2**16] * 4 + [6],
    [2**40 + 1], [2**33, 2**33, 2**33], [6, 0], [0], [0, 2**63], [-6], [-2, -3], [1] * 9, [6] + [1] * 20, [6.0], ["6"], [None], [[6]], [True, 6]])
def test_mf5_shapes_that_overflow_or_are_none(tmp_path, shape):
    """Six floats are there: a product that wraps around to them must not pass."""
    header_refused(tmp_path, {"a": ENTRY | {"shape": shape}}, b"\0" * 24)


def test_mf5_eight_dimensions_and_none_are_shapes(tmp_path):
    (tmp_path / "x").write_bytes(file_of({"a": ENTRY | {"shape": [1, 1, 1, 1, 1, 1, 2, 3]}, "b": {"dtype": "F32", "shape": [], "data_offsets": [24, 28]}}, b"\0" * 28))
    assert read_header(tmp_path / "x")["a"].shape == (1, 1, 1, 1, 1, 1, 2, 3) and read_header(tmp_path / "x")["b"].shape == ()


# ---------------------------------------------------------------------------------------------------- MF6: every tensor
@pytest.mark.parametrize("kind, name", EVERY_TENSOR)
def test_mf6_every_tensor_of_the_right_size_but_another_shape(tmp_path, kind, name):
    def reshaped(n, values):
        return values if n != name else values.T if values.ndim == 2 and values.shape[0] != values.shape[1] else values.reshape(1, *values.shape)
    write(tmp_path, KINDS[kind], reshaped)
    assert f"tensor {name}: expected shape" in refusal(tmp_path)


@pytest.mark.parametrize("kind, name", EVERY_TENSOR)
def test_mf6_every_tensor_of_integers(tmp_path, kind, name):
    write(tmp_path, KINDS[kind])
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    at = content.index(f'"{name}"'.encode())
    path.write_bytes(content[:at] + content[at:].replace(b'"F32"', b'"I32"', 1))
    assert f"tensor {name}: expected dtype F32, F16, BF16, found I32" in refusal(tmp_path)


def test_mf6_an_untied_model_needs_its_head(tmp_path):
    write(tmp_path, KINDS["qwen2"] | {"tie_word_embeddings": True})
    load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(KINDS["qwen2"] | {"tie_word_embeddings": False}))
    assert "tensor lm_head.weight: expected shape" in refusal(tmp_path)


def test_mf6_memory_is_not_taken_for_what_the_files_do_not_hold(tmp_path):
    """The engine would take gigabytes before it looks for the first tensor, each number being one that a model may have."""
    write(tmp_path, KINDS["llama"])
    for more in ({"hidden_size": 2**20, "head_dim": 16}, {"intermediate_size": 2**22}, {"num_hidden_layers": 4096}, {"vocab_size": 2**18},
                 {"num_attention_heads": 2**14, "num_key_value_heads": 2**14, "head_dim": 256}):
        (tmp_path / "config.json").write_text(json.dumps(KINDS["llama"] | more))
        assert "weights, as config.json describes, found" in refusal(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_mf6_the_core_s_own_list_is_what_is_gone_through(tmp_path, kind):
    write(tmp_path, KINDS[kind])
    expected = _core.Weights(_core.Backend(1, ""), core_config(read_config(tmp_path)), "fp32", "here").expected()
    assert {name: tuple(shape) for name, shape in expected} == dict(tensor_shapes(KINDS[kind]))
    assert {name for each, name in EVERY_TENSOR if each == kind} == {name for name, _ in expected}
