"""Engine.plan says what an engine then takes, and takes nothing itself."""

import json
import os
import subprocess
import sys

import numpy as np
import paceline
import pytest
from checkpoint_writer import tensor_shapes, write_checkpoint
from paceline import Engine, demo_pair
from paceline.memory_plan import MemoryPlan

from test_cuda import STUB, run

BIG = {  # 70 billion parameters
    "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "torch_dtype": "bfloat16"}


def agree(plan, info):
    return {name: getattr(plan, name) for name in ("weight_bytes", "kv_cache_bytes", "workspace_bytes")} == {
        name: info[name] for name in ("weight_bytes", "kv_cache_bytes", "workspace_bytes")}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "int4", "int4_g32"])
@pytest.mark.parametrize("options", [
    {"draft": False}, {"draft": False, "max_num_seqs": 3, "max_model_len": 200, "kv_dtype": "fp32"}, {"draft": True},
    {"draft": True, "num_speculative_tokens": 7, "max_num_seqs": 4, "kv_cache_tokens": 300, "draft_dtype": "int4", "num_threads": 3},
    {"draft": True, "num_speculative_tokens": 1, "max_model_len": 65, "kv_cache_tokens": 4096, "num_threads": 1, "acceptance": "rejection"}])
def test_a_plan_is_what_the_engine_then_takes(dtype, options):
    options = dict(options)
    models = demo_pair() if options.pop("draft") else demo_pair()[:1]
    plan = Engine.plan(*models, dtype=dtype, **options)
    with Engine(*models, dtype=dtype, warmup=False, **options) as engine:
        assert agree(plan, engine.info), (plan, engine.info)
    assert (plan.draft_weight_bytes > 0) == (len(models) == 2)
    assert plan.weight_bytes - plan.draft_weight_bytes == Engine.plan(models[0], dtype=dtype).weight_bytes
    assert plan.total_bytes == plan.weight_bytes + plan.kv_cache_bytes + plan.workspace_bytes and plan.fits


def test_a_planted_difference_is_found():
    with Engine(*demo_pair(), max_model_len=128, warmup=False) as engine:
        assert agree(Engine.plan(*demo_pair(), max_model_len=128), engine.info)
        for other in ({"max_model_len": 129}, {"max_num_seqs": 2}, {"num_speculative_tokens": 2}, {"num_threads": 5}, {"kv_cache_tokens": 64}):
            assert not agree(Engine.plan(*demo_pair(), **{"max_model_len": 128} | other), engine.info), other


def test_weights_from_a_cache_are_planned_alike(tmp_path):
    for _ in range(2):  # packed, then mapped
        with Engine(*demo_pair(), weights_cache=tmp_path, warmup=False) as engine:
            assert agree(Engine.plan(*demo_pair(), weights_cache=tmp_path), engine.info)


PLANNED = """
import json, resource, sys, paceline
options = dict(num_threads=2, max_num_seqs=8, max_model_len=131072, kv_cache_tokens=2**20)
paceline.Engine.plan(*paceline.demo_pair(), num_threads=2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
plan = paceline.Engine.plan(sys.argv[1], sys.argv[1], draft_dtype="int4", **options)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([after - before, plan.weight_bytes, plan.draft_weight_bytes, plan.kv_cache_bytes, plan.workspace_bytes, plan.fits]))
"""


def test_a_model_of_any_size_is_planned_from_its_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BIG))
    done = subprocess.run([sys.executable, "-c", PLANNED, tmp_path], capture_output=True, text=True, timeout=120, check=True)
    kilobytes, weights, draft, kv, workspace, fits = json.loads(done.stdout)
    assert kilobytes < 50_000
    assert 140e9 < weights - draft < 142e9 and 37e9 < draft < 41e9
    pages = 2**20 // 64 + 7  # a page more for each sequence but one
    assert kv == 2 * pages * 64 * 80 * 2 * 8 * 128 * 2
    assert 2e8 < workspace < 1e9 and not fits
    with pytest.raises(paceline.ModelFileError, match=r"expected model\.safetensors"):
        Engine(tmp_path)


LOADED = """
import json, pathlib, sys, paceline

def resident(line):
    return next(int(each.split()[1]) << 10 for each in pathlib.Path("/proc/self/status").read_text().splitlines() if each.startswith(line))

paceline.Engine(paceline.demo_pair()[0], warmup=False).close()  # what is taken once
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
before = resident("VmRSS")
with paceline.Engine(sys.argv[1], dtype=sys.argv[2], max_model_len=64, trace_cycles=0, warmup=False) as engine:
    print(json.dumps([resident("VmHWM") - before, engine.info["weight_bytes"]]))
"""


@pytest.mark.parametrize("stored, dtype", [("BF16", "int4"), ("F32", "int8"), ("BF16", "bf16")])
def test_a_load_takes_the_packed_weights_and_a_layer_at_most(tmp_path, stored, dtype):
    """Of a checkpoint of eight layers, 240 MB in bf16."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8,
              "num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
    write_checkpoint(tmp_path, config, [(name, shape, lambda shape=shape: np.full(shape, 0.01, np.float32)) for name, shape in tensor_shapes(config)], stored)
    done = subprocess.run([sys.executable, "-c", LOADED, tmp_path, dtype], capture_output=True, text=True, timeout=120, check=True)
    peak, packed = json.loads(done.stdout)
    layer = (4 * 1024**2 + 3 * 1024 * 2816) * {"BF16": 2, "F32": 4}[stored]
    assert packed < peak < packed + layer + 40e6, (peak, packed, layer)  # 40 MB: pages of KV, workspaces, stacks


@pytest.mark.parametrize("stated, dtype", [("float32", "fp32"), ("bfloat16", "bf16"), ("float16", "bf16"), (None, "bf16"), (7, "bf16")])
def test_without_weights_the_config_says_their_dtype(tmp_path, stated, dtype):
    (tmp_path / "config.json").write_text(json.dumps(BIG | {"num_hidden_layers": 2, "torch_dtype": stated}))
    plan, same = Engine.plan(tmp_path, max_model_len=512), Engine.plan(tmp_path, max_model_len=512, dtype=dtype)
    assert (plan.weight_bytes, plan.kv_cache_bytes) == (same.weight_bytes, same.kv_cache_bytes)


@pytest.mark.parametrize("options, kind, message", [
    ({"max_num_seqs": 0}, ValueError, "max_num_seqs must be in"), ({"num_speculative_tokens": 99}, ValueError, "num_speculative_tokens must be in"),
    ({"max_num_seqs": 200, "num_speculative_tokens": 3}, ValueError, r"must be at most 512"), ({"max_length": 3}, TypeError, "max_length"), ({"warmup": False}, None, "")])
def test_a_plan_takes_the_engine_s_arguments(options, kind, message):
    if kind is None:
        assert isinstance(Engine.plan(*demo_pair(), **options), MemoryPlan)
        return
    with pytest.raises(kind, match=message):
        Engine.plan(*demo_pair(), **options)


def test_a_plan_leaves_no_threads():
    before = len(os.listdir("/proc/self/task"))
    Engine.plan(*demo_pair(), num_threads=3)
    assert len(os.listdir("/proc/self/task")) == before


def test_what_does_not_fit_says_how_much_it_is():
    plan = Engine.plan(*demo_pair(), kv_cache_tokens=2**24, kv_dtype="fp32")
    with pytest.raises(paceline.CapacityError) as error:
        Engine(*demo_pair(), kv_cache_tokens=2**24, kv_dtype="fp32")
    assert not plan.fits
    assert str(error.value).endswith(f"; {str(plan).rpartition(', ')[0]}, {str(error.value).rpartition(', ')[2]}")
    assert f"KV caches {plan.kv_cache_bytes / 1e9:,.3f} GB" in str(error.value) and str(error.value).endswith(" GB available")


def test_weights_that_are_mapped_need_no_room(monkeypatch, tmp_path):
    monkeypatch.setattr("paceline.settings.available_memory", lambda: 12_000_000)  # of 23 for the weights, 9 for all else
    with pytest.raises(paceline.CapacityError, match="more than is available"):
        Engine(*demo_pair(), max_model_len=512)
    with Engine(*demo_pair(), max_model_len=512, weights_cache=tmp_path) as engine:
        assert len(engine.generate("a", max_tokens=3).token_ids) == 3


ON_CUDA = """
said = []
for options in ({}, {"dtype": "int8", "max_num_seqs": 3, "num_speculative_tokens": 5}, {"dtype": "fp32", "draft_dtype": "int4", "kv_cache_tokens": 100}):
    plan = paceline.Engine.plan(*paceline.demo_pair(), device="cuda", max_model_len=96, **options)
    with paceline.Engine(*paceline.demo_pair(), device="cuda", max_model_len=96, warmup=False, **options) as engine:
        names = ("weight_bytes", "kv_cache_bytes", "workspace_bytes")
        said.append([[getattr(plan, name) for name in names], [engine.info[name] for name in names], plan.fits, plan.available_bytes])
"""


def test_on_cuda_too():
    for plan, info, fits, available in run(ON_CUDA, **STUB):
        assert plan == info and fits and available > 2**32
        assert plan[2] > 36 * 2**20  # what the backend takes for itself is part of it
