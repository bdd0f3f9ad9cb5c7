"""Model files by somebody hostile, row by row: every kind of file (MF1), every cut (MF2), every link (MF8), what changes while it is read (MF9).
Each test names its row. Beside them: test_hostile_tensors.py, test_hostile_json.py; test_checkpoint.py (tensors, shards)."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import zipfile

import numpy as np
import paceline
import pytest
from paceline import Engine, _core, demo_pair, loading
from paceline.loading import load_weights, read_config
from paceline.loading.safetensors import read_header
from paceline.tokenizer import Tokenizer
from test_checkpoint import EVERY_TENSOR, KINDS, refusal, write
from test_safetensors import ENTRY, file_of

FILES = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json")


@pytest.fixture
def model(tmp_path):
    """A copy of the bundled draft, whose files may be spoiled."""
    return shutil.copytree(demo_pair()[1], tmp_path / "model")


def engine_refusal(directory):
    with pytest.raises(paceline.ModelFileError) as error:
        Engine(directory, warmup=False)
    return str(error.value)


# ---------------------------------------------------------------------------------------------------- MF1: what is no file
def make_odd(path, kind):
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "7 bytes":
        path.write_bytes(b"1234567")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.close()
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")


ODD = ["missing", "directory", "empty", "7 bytes", "fifo", "socket", "dangling", "loop", "device", "denied"]


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", FILES)
def test_mf1_what_is_no_readable_file_is_named_and_never_waited_for(model, name, kind, monkeypatch):
    if kind == "denied":
        really = os.open  # whoever runs the tests as root may read everything
        monkeypatch.setattr(os, "open", lambda path, *rest, **more: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
                            if str(path).endswith(name) else really(path, *rest, **more))
    else:
        make_odd(model / name, kind)
    if kind == "missing" and name in ("generation_config.json", "tokenizer.json"):  # those may be absent
        Engine(model, warmup=False).close()
        return
    start = time.monotonic()
    said = engine_refusal(model)
    assert time.monotonic() - start < 5 and (name in said or kind == "missing") and str(model) in said


# ---------------------------------------------------------------------------------------------------- MF2: cuts and polyglots
def test_mf2_a_file_cut_anywhere_or_with_a_byte_more_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    whole = file_of({f"layer.{i}": ENTRY | {"data_offsets": [24 * i, 24 * i + 24]} for i in range(20)}, os.urandom(480))
    assert 1500 < len(whole) < 3000
    for content in (*(whole[:size] for size in range(len(whole))), whole + b"\0"):
        path.write_bytes(content)
        with pytest.raises(paceline.ModelFileError):
            read_header(path)
    path.write_bytes(whole)
    assert len(read_header(path)) == 20


@pytest.mark.parametrize("front", [b"PK\3\4", b"GGUF", b"\x80\x04", b"\x89HDF\r\n\x1a\n", b"\x93NUMPY", b"{", b" "])
def test_mf2_a_polyglot_is_refused(tmp_path, front):
    """A file that is something else from its front, and safetensors to whoever skips that."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(front + file_of({"a": ENTRY}))
    with pytest.raises(paceline.ModelFileError):
        read_header(path)


def test_mf2_an_archive_behind_the_tensors_is_refused(tmp_path):
    """Archives are read from their end: the same bytes would be a zip with code for one reader and weights for another."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({"a": ENTRY}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("data.pkl", b"cos\nsystem\n(S'true'\ntR.")
    assert zipfile.is_zipfile(path)
    with pytest.raises(paceline.ModelFileError, match="bytes in all"):
        read_header(path)


# ---------------------------------------------------------------------------------------------------- MF8: ways out of the directory
@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "./x.safetensors", "a/x.safetensors", "a\\..\\x.bin", "..", ".", "", "x", "x.safetensors\0",
                                  "x.safetensors/", "\u2024\u2024/x.safetensors"])
def test_mf8_an_index_names_plain_files_only(tmp_path, name):
    write(tmp_path / "model", KINDS["llama"], shards=2)
    shutil.copy(tmp_path / "model" / "model-00001-of-00002.safetensors", tmp_path / "x.safetensors")
    path = tmp_path / "model" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {tensor: name if shard.startswith("model-00001") else shard for tensor, shard in index["weight_map"].items()}
    path.write_text(json.dumps(index))
    assert "expected the plain name" in refusal(tmp_path / "model") or "cannot be read" in refusal(tmp_path / "model")


@pytest.mark.parametrize("name", FILES)
def test_mf8_a_link_out_of_the_directory_is_refused(model, name):
    outside = model.parent / name
    (model / name).rename(outside)
    for target in (outside, pathlib.Path("..") / name):
        (model / name).symlink_to(target)
        assert f"{name}: expected a file of its directory, found a link out of it" in engine_refusal(model)
        (model / name).unlink()
    (model / ("real_" + name)).write_bytes(outside.read_bytes())
    (model / name).symlink_to("real_" + name)
    Engine(model, warmup=False).close()  # a link inside is a name like any other


def test_mf8_a_shard_that_is_a_link_out_is_refused(tmp_path):
    write(tmp_path / "model", KINDS["llama"], shards=2)
    shard = tmp_path / "model" / "model-00002-of-00002.safetensors"
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    assert "found a link out of it" in refusal(tmp_path / "model")


def test_mf8_the_cache_of_the_hub_is_a_directory_of_links(model, tmp_path):
    """snapshots/REVISION/NAME -> ../../blobs/HASH: the one way out that leads to what was downloaded for this very model."""
    root = tmp_path / "models--a--b"
    snapshot = root / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    for i, name in enumerate(FILES):
        shutil.copy(model / name, root / "blobs" / str(i))
        (snapshot / name).symlink_to(f"../../blobs/{i}")
    Engine(snapshot, warmup=False).close()
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../refs")
    assert "found a link out of it" in engine_refusal(snapshot)


def test_mf8_a_file_that_the_caller_names_may_be_a_link(model, tmp_path):
    (tmp_path / "words.json").symlink_to(model / "tokenizer.json")
    assert Tokenizer.read(tmp_path / "words.json").vocab_size == 2048


# ---------------------------------------------------------------------------------------------------- MF9: values, and files that change
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind, name", EVERY_TENSOR)
def test_mf9_a_value_that_is_not_finite_names_its_tensor(tmp_path, kind, name, bad):
    def spoiled(n, values):
        if n == name:
            values.flat[values.size // 2] = bad
        return values
    write(tmp_path, KINDS[kind], spoiled)
    assert f"tensor {name}: expected finite values, found NaN or infinity" in refusal(tmp_path)


def test_mf9_weights_are_copies(model):
    """Whatever happens to the file after construction, shortening included, the engine does not notice."""
    with Engine(model, warmup=False) as engine:
        want = engine.verify([5], [7, 8]).logprobs
        path = model / "model.safetensors"
        with open(path, "r+b") as file:
            file.seek(5000)
            file.write(b"\xff" * 100_000)
        assert np.array_equal(engine.verify([5], [7, 8]).logprobs, want)
        os.truncate(path, 0)
        assert np.array_equal(engine.verify([5], [7, 8]).logprobs, want)


LOADING = """
import sys, paceline
for _ in range(1000):
    try:
        paceline.Engine(sys.argv[1], num_threads=1, warmup=False).close()
    except paceline.ModelFileError:
        pass
    print("once more", flush=True)
"""


def test_mf9_a_file_shortened_while_it_is_read_ends_nobody(model):
    """At fifty times of reading, parsing and packing: an error, or weights that were read before; no SIGBUS."""
    path = model / "model.safetensors"
    whole = path.read_bytes()
    loading = subprocess.Popen([sys.executable, "-c", LOADING, model], stdout=subprocess.PIPE, text=True)
    try:
        loading.stdout.readline()
        random = np.random.RandomState(9)
        for _ in range(50):
            os.truncate(path, int(random.choice([0, 4, 9, 300, 4000, len(whole) // 2])))
            time.sleep(random.random_sample() * 0.004)
            with open(path, "r+b") as file:
                file.write(whole)
            time.sleep(random.random_sample() * 0.03)
        assert loading.poll() is None
        loading.stdout.readline()
    finally:
        loading.kill()
        loading.wait()
        loading.stdout.close()
    assert loading.returncode == -9  # ours, and nobody else's


def swapped(path, kind, outside):
    """Put in the place of the file whose header has been read: of the same header and size, so that only its bytes tell."""
    data = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    data[begin:begin + 1000] = bytes(1000)
    if kind == "written into":
        path.write_bytes(data)
        return
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
        return
    (path if kind == "another file" else outside).write_bytes(data)
    if kind == "link out":
        path.symlink_to(outside)


@pytest.mark.parametrize("kind, said", [("link out", "found a link out of it"), ("another file", "found that it has changed since"),
                                        ("written into", "found that it has changed since"), ("fifo", "expected a regular file, found something else")])
def test_mf9_weights_are_those_of_the_header_that_was_read(model, tmp_path, kind, said):
    checkpoint = read_config(model)
    swapped(model / "model.safetensors", kind, tmp_path / "outside")
    with pytest.raises(paceline.ModelFileError, match=said):
        load_weights(_core.Backend(1, ""), checkpoint, "fp32")


def test_mf9_a_file_written_into_while_it_is_read_is_refused(model, tmp_path, monkeypatch):
    path, read = model / "model.safetensors", loading.checkpoint._read
    checkpoint, changes = read_config(model), iter([lambda: swapped(path, "written into", None)])
    monkeypatch.setattr(loading.checkpoint, "_read", lambda *args: (read(*args), next(changes, lambda: None)()))
    with pytest.raises(paceline.ModelFileError, match="found that it has changed since"):
        load_weights(_core.Backend(1, ""), checkpoint, "fp32")


def test_mf9_a_file_replaced_while_it_is_read_is_the_one_that_was_opened(model, tmp_path, monkeypatch):
    path, read = model / "model.safetensors", loading.checkpoint._read
    checkpoint, changes = read_config(model), iter([lambda: swapped(path, "another file", None)])
    monkeypatch.setattr(loading.checkpoint, "_read", lambda *args: (read(*args), next(changes, lambda: None)()))
    load_weights(_core.Backend(1, ""), checkpoint, "fp32")


def test_mf9_the_library_maps_memory_that_nobody_can_shorten(model, monkeypatch):
    """It is never shown the file itself, which could become shorter under its map."""
    import safetensors
    seen = []
    really = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", lambda path, **options: (seen.append(path), really(path, **options))[1])
    read_config(model)
    assert len(seen) == 1 and seen[0].startswith("/proc/self/fd/")
