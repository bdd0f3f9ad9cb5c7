"""Packed weights in a file: the same bits as from the checkpoint, and whatever is wrong with the file costs time, not truth."""

import multiprocessing
import os
import shutil
import time

import numpy as np
import paceline
import pytest
from checkpoint_writer import tensor_shapes, write_checkpoint
from oracle_models import shape
from paceline import _core
from paceline.bundled import demo_pair
from paceline.loading import load_cached_weights, load_weights, read_config, weights_cache


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the bundled draft: small, and its files may be touched."""
    return shutil.copytree(demo_pair()[1], tmp_path / "model")


def answer(checkpoint, cache):
    """(logprobs, notes on the cache) of an engine."""
    with paceline.Engine(checkpoint, weights_cache=cache, dtype="int8", warmup=False) as engine:
        return engine.verify([5], list(range(40, 60))).logprobs, [note for note in engine.info["notes"] if "weights_cache" in note]


def forbid_packing(monkeypatch):
    monkeypatch.setattr(weights_cache, "load_weights", lambda *_: pytest.fail("the checkpoint was packed again"))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "int4", "int4_g32"])
def test_the_second_start_maps_what_the_first_packed(checkpoint, tmp_path, monkeypatch, dtype):
    def logprobs():
        with paceline.Engine(checkpoint, weights_cache=tmp_path / "cache", dtype=dtype, warmup=False) as engine:
            assert engine.info["weights_cache"] == str(tmp_path / "cache")
            return engine.verify([5], list(range(40, 60))).logprobs

    with paceline.Engine(checkpoint, dtype=dtype, warmup=False) as engine:
        want = engine.verify([5], list(range(40, 60))).logprobs
    assert np.array_equal(logprobs(), want)
    forbid_packing(monkeypatch)
    assert np.array_equal(logprobs(), want)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def damages(size):
    yield "has another format or key", lambda data: data[:30] + b"x" + data[31:]
    yield "has no header", lambda data: b"{" * len(data)
    yield "has a damaged table", lambda data: data[:260] + bytes([data[260] ^ 1]) + data[261:]
    yield f"bytes instead of {size}", lambda data: data[:-1]
    yield f"bytes instead of {size}", lambda data: data + b"\0"
    yield "cannot be mapped", lambda data: b""
    yield "is damaged in block 0 of", lambda data: data[:4096] + bytes([data[4096] ^ 128]) + data[4097:]
    yield "is damaged in block", lambda data: data[:-1] + bytes([data[-1] ^ 1])


def test_a_bad_file_is_written_anew_and_said_so(checkpoint, tmp_path, monkeypatch):
    want, notes = answer(checkpoint, tmp_path / "cache")
    assert notes == []
    (path,) = (tmp_path / "cache").iterdir()
    good = path.read_bytes()
    for said, damage in damages(len(good)):
        path.write_bytes(damage(good))
        got, notes = answer(checkpoint, tmp_path / "cache")
        assert len(notes) == 1 and said in notes[0] and "written anew" in notes[0], (said, notes)
        assert np.array_equal(got, want) and path.read_bytes() == good
    forbid_packing(monkeypatch)
    assert answer(checkpoint, tmp_path / "cache")[1] == []


def test_every_block_is_checked(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(weights_cache, "BLOCK", 1 << 16)
    answer(checkpoint, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    good = path.read_bytes()
    for at in range(len(good) - 1, 4096, -(1 << 16)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 16]) + good[at + 1:])
        assert "is damaged in block" in answer(checkpoint, tmp_path / "cache")[1][0]


def test_a_checkpoint_that_changed_has_another_file(checkpoint, tmp_path):
    answer(checkpoint, tmp_path / "cache")
    os.utime(checkpoint / "model.safetensors", ns=(1, 1))
    answer(checkpoint, tmp_path / "cache")
    with paceline.Engine(checkpoint, weights_cache=tmp_path / "cache", dtype="int4", warmup=False):
        pass
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_mapped_file_may_be_replaced_or_removed(checkpoint, tmp_path):
    answer(checkpoint, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    with paceline.Engine(checkpoint, weights_cache=tmp_path / "cache", dtype="int8", warmup=False) as engine:
        want = engine.verify([5], [7, 8]).logprobs
        path.unlink()
        answer(checkpoint, tmp_path / "cache")
        assert np.array_equal(engine.verify([5], [7, 8]).logprobs, want)


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_checkpoint_that_changes_under_a_start_leaves_no_file(checkpoint, tmp_path, monkeypatch, goes_on):
    """Nobody knows whether its weights were read before or after the change."""
    def meanwhile(*arguments):
        weights = load_weights(*arguments)
        (checkpoint / "model.safetensors").rename(checkpoint / "old")
        if goes_on:
            shutil.copyfile(checkpoint / "old", checkpoint / "model.safetensors")
        return weights

    monkeypatch.setattr(weights_cache, "load_weights", meanwhile)
    notes = answer(checkpoint, tmp_path / "cache")[1]
    assert len(notes) == 1 and "is not written" in notes[0] and "model.safetensors changed while it was read" in notes[0]
    assert not (tmp_path / "cache").exists()


def test_the_key_is_of_the_time_when_headers_were_read(checkpoint, tmp_path, monkeypatch):
    files, backend = read_config(checkpoint), _core.Backend(1, "")
    load_cached_weights(tmp_path, backend, files, "int8")
    (path,) = tmp_path.glob("*.packed")
    os.utime(checkpoint / "model.safetensors", ns=(1, 1))
    forbid_packing(monkeypatch)
    assert load_cached_weights(tmp_path, backend, files, "int8")[1] is None
    monkeypatch.undo()
    load_cached_weights(tmp_path, backend, read_config(checkpoint), "int8")
    assert len(list(tmp_path.glob("*.packed"))) == 2 and path.exists()


def test_leftovers_of_killed_writers_go_after_a_day(checkpoint, tmp_path):
    names = {"old.packed.part": 86_500, "young.packed.part": 86_000, "old.part": 86_500, "old.packed": 86_500}
    for name, age in names.items():
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    load_cached_weights(tmp_path, _core.Backend(1, ""), read_config(checkpoint), "int8")
    assert {name for name in names if (tmp_path / name).exists()} == names.keys() - {"old.packed.part"}


def test_a_directory_that_cannot_be_written_is_a_note(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    notes = answer(checkpoint, tmp_path / "file" / "cache")[1]
    assert len(notes) == 1 and "cannot be written: Not a directory" in notes[0]


def test_a_writer_that_fails_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in answer(checkpoint, tmp_path / "cache")[1][0]
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_bad_file_that_cannot_be_written_anew_has_both_reasons(checkpoint, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    answer(checkpoint, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(b"")
    monkeypatch.setattr(os, "fsync", full)
    (note,) = answer(checkpoint, tmp_path / "cache")[1]
    assert "cannot be mapped" in note and "cannot be written: No space left" in note


def _start(checkpoint, cache, results):
    results.put(answer(checkpoint, cache))


def test_writers_at_the_same_time(checkpoint, tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_start, args=(checkpoint, tmp_path / "cache", results)) for _ in range(4)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert all(np.array_equal(logprobs, answers[0][0]) and notes == [] for logprobs, notes in answers)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_auto_is_the_user_s_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights_cache.default_directory() == tmp_path / "paceline"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights_cache.default_directory() == tmp_path / ".cache" / "paceline"


def test_packed_weights_of_another_size_are_refused(checkpoint):
    config = read_config(checkpoint)
    backend = _core.Backend(1, "")
    packed = load_weights(backend, config, "int8").packed()
    for wrong in (packed, packed[:-1], packed[:0]):
        with pytest.raises(paceline.ModelFileError, match=f"bytes of packed weights, found {len(wrong)}$"):
            _core.Weights(backend, weights_cache.core_config(config), "int4", "here", wrong)


LAYOUTS = {"fp32": 2968104669658603824, "bf16": 7117818003802612916, "int8": 18085116682782540089, "int4": 13053682434216451110,
           "int4_g32": 9764395535401401071}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "int4", "int4_g32"])
def test_the_layout_is_that_of_its_format_number(tmp_path, dtype):
    """Whoever changes how weights are packed or quantised raises weights_cache.FORMAT, and then these checksums."""
    config = shape("llama", 2, 1, 16, vocab=40, rope_theta=10000.0, attention_bias=True)
    tensors = [(name, size, lambda i=i, size=size: np.random.default_rng(i).standard_normal(size).astype(np.float32))
               for i, (name, size) in enumerate(tensor_shapes(config))]
    write_checkpoint(tmp_path, config, tensors, "F32", 1)
    backend = _core.Backend(1, "")
    weights, _ = load_cached_weights(tmp_path / "cache", backend, read_config(tmp_path), dtype)
    assert (weights_cache.FORMAT, _core.checksum(weights.packed())) == (1, LAYOUTS[dtype])
