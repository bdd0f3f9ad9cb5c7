"""What Engine makes of its arguments before it reads anything large: limits, vocabulary, dtypes, windows, memory."""

import dataclasses
import shutil
from pathlib import Path

import paceline
import pytest
from paceline import demo_pair, kv_budget
from paceline.arguments import resolve
from paceline.loading import read_config

DEFAULTS = dict(
    draft=None, drafter="auto", tokenizer=None, device="cpu", dtype="auto", draft_dtype="auto", kv_dtype="auto", weights_cache=None, num_speculative_tokens="auto",
    policy="fixed", verify_budget=None, latency_target=None, min_draft_confidence=0.0, acceptance="coupled", max_model_len=None, max_num_seqs=1, max_queue=1024, kv_cache_tokens=None, prefix_cache_bytes=None,
    trace_cycles=4096, num_threads=None, cost_cache=None)


def settings(**given):
    return resolve(**DEFAULTS | {"target": demo_pair()[0]} | given)


@pytest.fixture
def with_checkpoints(monkeypatch):
    """change(role, fields): what read_config says of that checkpoint of the bundled pair, changed."""
    changes = {}
    monkeypatch.setattr("paceline.arguments.read_config", lambda path, planning: changes.get(path, read_config)(path))

    def change(role, dtype=None, **fields):
        directory = demo_pair()[role == "draft"]
        config = {k: fields.pop(k) for k in list(fields) if hasattr(read_config(directory).config, k)}

        def changed(path):
            files = read_config(path)
            files = dataclasses.replace(files, config=dataclasses.replace(files.config, **config), **fields)
            return files if dtype is None else Stored(files, dtype)
        changes[directory] = changed
    return change


class Stored:
    """A checkpoint whose tensors have another dtype."""

    def __init__(self, files, dtype):
        self._files, self.dtype = files, dtype

    def __getattr__(self, name):
        return getattr(self._files, name)


MODEL = "a local directory in Hugging Face format"


@pytest.mark.parametrize("name, expected, given", [
    *(("target", MODEL, wrong) for wrong in (("a", "b"), "", None, b"bytes", "a\0b")), ("draft", MODEL, 3), ("draft", MODEL, ""),
    ("tokenizer", "a path", [1]), ("tokenizer", "a path", ""), ("weights_cache", 'a path, "auto" or None', ""),
    ("weights_cache", 'a path, "auto" or None', 7), ("weights_cache", 'a path, "auto" or None', True)])
def test_what_is_no_path_is_refused_by_name(name, expected, given):
    with pytest.raises(ValueError) as error:
        settings(**{name: given})
    assert str(error.value) == f"[Engine] {name} must be {expected}, got {given!r}"


@pytest.mark.parametrize("role", ["target", "draft"])
def test_a_model_is_a_local_directory(role, tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    hub = "no such directory, and nothing is downloaded: run `hf download meta-llama/Llama-3.2-1B --local-dir DIR` (pip install huggingface_hub) and pass DIR"
    for given, why in (("meta-llama/Llama-3.2-1B", hub), (tmp_path / "missing", "no such directory"),
                       (file / "below", "no such directory"), (file, "not a directory")):
        with pytest.raises(ValueError) as error:
            settings(**{role: given})
        assert str(error.value) == f"[Engine] {role} must be {MODEL}, got {given}: {why}"


def test_the_draft_s_dtype_needs_a_draft():
    for dtype in ("int4", "bf16"):
        with pytest.raises(ValueError, match=rf'\[Engine\] draft_dtype must be "auto" without a draft, got \'{dtype}\''):
            settings(draft_dtype=dtype)
    assert settings(draft_dtype="auto", dtype="int8").draft is None
    assert settings(draft_dtype="int4", draft=demo_pair()[1]).draft_dtype == "int4"


@pytest.mark.parametrize("name, draft", [("dtype", False), ("draft_dtype", False), ("draft_dtype", True)])
def test_a_dtype_may_be_auto_and_the_message_says_so(name, draft):
    with pytest.raises(ValueError) as error:
        settings(**{name: "int3", "draft": demo_pair()[1] if draft else None})
    assert str(error.value) == f"[Engine] {name} must be one of auto, bf16, fp32, int8, int4, int4_g32, got 'int3'"
    with pytest.raises(ValueError, match="kv_dtype must be one of auto, bf16, fp32, got 'int8'"):
        settings(kv_dtype="int8")


def test_defaults():
    got = settings(draft=demo_pair()[1])
    assert (got.dtype, got.draft_dtype, got.kv_dtype, got.num_speculative_tokens, got.max_model_len) == ("bf16", "bf16", "bf16", 3, 512)
    assert (got.kv_cache_tokens, got.vocab_size, got.device, got.notes) == (512, 2048, "cpu", ())
    assert settings().num_speculative_tokens == 0
    for seqs, ngram, model in ((64, 7, 3), (65, 6, 3), (129, 2, 2), (256, 1, 1)):  # 512 rows of a pass at most
        assert settings(draft="ngram", max_num_seqs=seqs).num_speculative_tokens == ngram
        assert settings(draft=demo_pair()[1], max_num_seqs=seqs).num_speculative_tokens == model


@pytest.mark.parametrize("stored, dtype, note", [("fp32", "fp32", False), ("bf16", "bf16", False), ("fp16", "bf16", True)])
def test_auto_keeps_fp32_and_says_when_it_rounds(with_checkpoints, stored, dtype, note):
    with_checkpoints("target", dtype=stored)
    got = settings()
    assert (got.dtype, got.kv_dtype, any("rounded to bf16" in text for text in got.notes)) == (dtype, dtype, note)
    assert settings(dtype="fp32").notes == ()


def test_a_sliding_window_limits_the_context(with_checkpoints):
    with_checkpoints("target", sliding_window=128)
    got = settings()
    assert got.max_model_len == 128 and "sliding_window" in got.notes[0]
    assert settings(max_model_len=128).max_model_len == 128
    with pytest.raises(ValueError, match="max_model_len must be at most the target's sliding_window of 128 tokens, got 129"):
        settings(max_model_len=129)
    with_checkpoints("target", sliding_window=512)
    assert settings().notes == ()


def test_a_draft_proposes_within_its_window(with_checkpoints):
    with_checkpoints("draft", sliding_window=96)
    got = settings(draft=demo_pair()[1])
    assert (got.max_model_len, got.draft.config.max_position_embeddings) == (512, 96) and "position 96" in got.notes[0]


@pytest.mark.parametrize("in_config, expected", [(2048, 2048), (2100, 2048), (1900, 1900)])
def test_the_target_s_tokenizer_says_which_ids_exist(with_checkpoints, in_config, expected):
    with_checkpoints("target", vocab_size=in_config)
    assert settings().vocab_size == expected


def test_a_draft_without_a_tokenizer_is_trusted_and_noted(tmp_path):
    shutil.copytree(demo_pair()[1], tmp_path / "draft", ignore=shutil.ignore_patterns("tokenizer.json"))
    assert "no tokenizer.json" in settings(draft=tmp_path / "draft").notes[0]


def test_eos_beyond_the_vocabulary_is_refused(with_checkpoints):
    with_checkpoints("target", eos_token_ids=(2047, 2048))
    with pytest.raises(paceline.ModelFileError, match="found 2048"):
        settings()


def test_kv_positions_by_default():
    assert kv_budget.kv_bytes_per_position(read_config(demo_pair()[0]).config, "bf16") == 2 * 6 * 2 * 64 * 2
    assert kv_budget.default_kv_cache_tokens(2, 400, 1000, 4_000_000) == (800, None)
    assert kv_budget.default_kv_cache_tokens(1, 100_000, 10, 4_000_000) == (8192, None)
    positions, note = kv_budget.default_kv_cache_tokens(8, 400, 1000, 4_000_000)
    assert positions == 960 and "960 instead of 3200" in note  # a quarter of 4 MB, in whole pages


def test_the_length_by_default():
    gigabyte = 10**9
    assert kv_budget.default_max_model_len(131_072, 8, [128, 64], False, 4 * gigabyte) == (131_072, None)
    assert kv_budget.default_max_model_len(2**20, 1, [64], False, 16 * gigabyte) == (2**20, None)
    length, note = kv_budget.default_max_model_len(2**24, 1, [64], False, 16 * gigabyte)
    assert length == 2**20 and note == "max_model_len is 1048576 instead of 16777216: more only when it is asked for"
    for ngram, taken in ((False, 4 * (128 + 64) + 8 * 5), (True, 4 * (128 + 64) + 8 * 115)):
        length, note = kv_budget.default_max_model_len(2**24, 8, [128, 64], ngram, gigabyte)
        assert 0.24 * gigabyte < length * taken <= gigabyte / 4 and "a quarter of the free memory" in note
    assert kv_budget.default_max_model_len(2**24, 8, [128], False, 0)[0] == 64


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "int4", "int4_g32"])
def test_the_size_of_weights_is_known_before_they_are_loaded(dtype):
    target, draft = demo_pair()
    with paceline.Engine(target, draft, device="cpu", dtype=dtype, draft_dtype=dtype, warmup=False) as engine:
        expected = sum(kv_budget.weight_bytes(read_config(path).config, dtype) for path in (target, draft))
        assert expected == pytest.approx(engine.info["weight_bytes"], rel=0.05)


def test_a_device_shares_what_the_weights_leave(monkeypatch):
    class Device:
        def free_bytes(self):
            return 50_000_000

    monkeypatch.setattr("paceline.arguments.make_backend", lambda device, threads, notes: ("cuda", Device()))
    for draft, options in ((None, {}), (demo_pair()[1], {"dtype": "int8", "draft_dtype": "int4"})):
        got = settings(device="cuda", draft=draft, max_num_seqs=200, num_speculative_tokens=0, **options)
        models = [(got.target.config, got.dtype), *([(got.draft.config, got.draft_dtype)] if draft else [])]
        left = 50_000_000 - sum(kv_budget.weight_bytes(config, dtype) for config, dtype in models)
        positions = left // 4 // sum(kv_budget.kv_bytes_per_position(config, "bf16") for config, _ in models) // 64 * 64
        assert 64 < positions == got.kv_cache_tokens


def test_a_budget_for_prefixes():
    assert settings().prefix_cache_bytes is None and settings().info()["prefix_cache_bytes"] is None
    for given in (0, 1, 2**40):
        assert settings(prefix_cache_bytes=given).info()["prefix_cache_bytes"] == given
    for given, expected in ((-1, f"in [0, {2**63 - 1}]"), (2**63, f"in [0, {2**63 - 1}]"), ("1", "an int"), (1.5, "an int"), (True, "an int")):
        with pytest.raises(ValueError) as error:
            settings(prefix_cache_bytes=given)
        assert str(error.value) == f"[Engine] prefix_cache_bytes must be {expected}, got {given!r}"


MEMINFO = "MemTotal: 9 kB\nMemAvailable:  2000 kB\n"
V2, V1 = "/sys/fs/cgroup", "/sys/fs/cgroup/memory"


def group(directory, limit, used, version=2):
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    return {f"{directory}/{name}": f"{value}\n" for name, value in zip(names, (limit, used), strict=True)}


@pytest.mark.parametrize("files, available", [
    ({}, 2_048_000), ({"/proc/self/cgroup": "0::/\n"} | group(V2, "max", 1000), 2_048_000), ({"/proc/self/cgroup": "0::/\n"} | group(V2, 501_000, 1000), 500_000),
    ({"/proc/self/cgroup": "0::/a/b\n"} | group(f"{V2}/a/b", 301_000, 1000) | group(f"{V2}/a", "max", 1000), 300_000),
    ({"/proc/self/cgroup": "0::/a/b\n"} | group(f"{V2}/a/b", "max", 1000) | group(f"{V2}/a", 201_000, 1000), 200_000),  # the group around it
    ({"/proc/self/cgroup": "0::/a\n"} | group(f"{V2}/a", 1000, 3000), 0),
    ({"/proc/self/cgroup": "0::/docker/x\n"} | group(V2, 101_000, 1000), 100_000),  # a container: its own group is the root
    ({"/proc/self/cgroup": "9:cpu:/q\n4:memory:/a/b\n0::/\n"} | group(f"{V1}/a/b", 2**63 - 4096, 7, 1) | group(f"{V1}/a", 401_000, 1000, 1) | group(V1, 2**63 - 4096, 7, 1), 400_000),
    ({"/proc/self/cgroup": "4:hugetlb,memory:/\n"} | group(V1, 51_000, 1000, 1), 50_000)])
def test_free_memory_is_what_the_system_and_every_cgroup_leave(monkeypatch, files, available):
    files = {"/proc/meminfo": MEMINFO} | files

    def read(path, *_, **__):
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    assert kv_budget.available_memory() == available
