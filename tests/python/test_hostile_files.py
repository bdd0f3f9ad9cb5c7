"""Model files by somebody hostile, row by row (MF1 to MF9): every kind of file, every cut, every number, every link. Each test names its
row. Beside them: test_safetensors.py (headers), test_checkpoint.py (tensors, shards), test_tokenizer.py."""

import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import paceline
import pytest
from checkpoint_writer import tensor_shapes
from paceline import Engine, _core, demo_pair
from paceline.loading import read_config
from paceline.loading.checkpoint import core_config
from paceline.loading.safetensors import read_header
from paceline.loading.strict_json import parse_object
from paceline.tokenizer import Tokenizer
from test_checkpoint import EVERY_TENSOR, KINDS, load, refusal, write
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
    """The engine would take a terabyte before it looks for the first tensor."""
    write(tmp_path, KINDS["llama"])
    for more in ({"hidden_size": 2**30, "head_dim": 16}, {"intermediate_size": 2**31 - 1}, {"num_hidden_layers": 4096}, {"vocab_size": 2**18},
                 {"num_attention_heads": 2**30, "num_key_value_heads": 2**30, "head_dim": 256}):
        (tmp_path / "config.json").write_text(json.dumps(KINDS["llama"] | more))
        assert "weights, as config.json describes, found" in refusal(tmp_path)


# ---------------------------------------------------------------------------------------------------- MF7: JSON
TWICE = [b'{"a":1,"a":2}', b'{"a":{"b":1,"b":2}}', b'{"__metadata__":{"k":"1","k":"2"}}', b'{"a":1,"\\u0061":2}']
NONE = [b"\xff", b"{\xff}", b'{"a":"\xed\xa0\x80"}', b'\xef\xbb\xbf{}', b"{\0}", b'{"a\0":1}', b'{"a":"\n"}', b'{"a":1,}', b"{'a':1}", b'{"a":01}', b'{"a":+1}', b'{"a":.5}',
        b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":"\\ud800"}', b'{"\\udc00\\ud800":1}', b'{"a":"\\x41"}', b"{} {}", b"[]", b'"a"', b"5", b"", b"{", b'{"a"', b'{"a":"',
        b'{"a":' + b"9" * 401 + b"}", b'{"a":0.' + b"9" * 400 + b"}", '{"a":1}'.encode("utf-16")]


@pytest.mark.parametrize("content", [*TWICE, *NONE])
def test_mf7_what_is_not_json_or_says_something_twice(content):
    with pytest.raises(paceline.ModelFileError, match="^here: expected"):
        parse_object(content, "here")


@pytest.mark.parametrize("opening, closing", [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]"), (b'{"a":[', b"]}")])
def test_mf7_nesting(opening, closing):
    per = opening.count(b"[") + opening.count(b"{")
    most = 8 if per == 1 and opening != b"[" else 7 if per == 1 else 3
    wrap = lambda n: b'{"a":' + opening * n + b"1" + closing * n + b"}"  # noqa: E731
    inside = 7 // per
    parse_object(wrap(inside), "here")
    for n in (inside + 1, most + 1, 64, 100_000):
        with pytest.raises(paceline.ModelFileError, match="nested at most 8 deep"):
            parse_object(wrap(n), "here")
    with pytest.raises(paceline.ModelFileError, match="nested at most 8"):
        parse_object(b'{"a":' + opening * 100_000, "here")  # and never closed


RAISED = """
import sys, paceline
from paceline.loading.strict_json import parse_object
sys.setrecursionlimit(10**9)  # as a host might: the interpreter no longer stops what recurses
try:
    parse_object(b'{"a":' + b"[" * 10**6 + b"]" * 10**6 + b"}", "here")
except paceline.ModelFileError:
    print("refused")
"""


def test_mf7_depth_is_bounded_before_anything_recurses():
    done = subprocess.run([sys.executable, "-c", RAISED], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "refused"), done.stderr[-300:]


def test_mf7_brackets_in_strings_are_text():
    assert parse_object(b'{"a":"' + b"[{" * 1000 + b'","b":"\\"[[[[[[[[[[","c":"\\\\"}', "here") == {"a": "[{" * 1000, "b": '"[[[[[[[[[[', "c": "\\"}


def test_mf7_numbers_are_not_texts(tmp_path):
    for entry in ({"dtype": "F32", "shape": ["2", "3"], "data_offsets": [0, 24]}, {"dtype": "F32", "shape": [2, 3], "data_offsets": ["0", "24"]}):
        header_refused(tmp_path, {"a": entry}, b"\0" * 24)


def test_mf7_a_name_of_a_megabyte_and_one_that_speaks_to_the_terminal(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({"x" * 1_000_000: ENTRY | {"shape": [7]}, "\n\x1b[2Jpaceline: all is well": ENTRY | {"shape": [7]}}, b"\0" * 48))
    with pytest.raises(paceline.ModelFileError) as error:
        read_header(path)
    assert len(str(error.value)) < 600 and str(error.value).isprintable()
    path.write_bytes(file_of({"\n\x1b[2Jpaceline: all is well": ENTRY | {"shape": [7]}}))
    with pytest.raises(paceline.ModelFileError) as error:
        read_header(path)
    assert str(error.value).isprintable()


def test_mf7_a_hundred_thousand_entries_take_less_than_a_second(tmp_path):
    path = tmp_path / "model.safetensors"
    entry = '"%d":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}'
    path.write_bytes(file_of(("{" + ",".join(entry % (i, i, i + 1) for i in range(100_000)) + "}").encode(), b"\0" * 100_000))
    start = time.process_time()
    with pytest.raises(paceline.ModelFileError, match="at most 65536 tensors, found 100000"):
        read_header(path)
    assert time.process_time() - start < 1


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


def test_mf9_the_library_maps_memory_that_nobody_can_shorten(model, monkeypatch):
    """It is never shown the file itself, which could become shorter under its map."""
    import safetensors
    seen = []
    really = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", lambda path, **options: (seen.append(path), really(path, **options))[1])
    read_config(model)
    assert len(seen) == 1 and seen[0].startswith("/proc/self/fd/")


# ---------------------------------------------------------------------------------------------------- tokenizer.json and generation_config.json
def words_with(model, change):
    words = json.loads((model / "tokenizer.json").read_text())
    change(words)
    (model / "tokenizer.json").write_text(json.dumps(words))
    return model


def doubling(words):
    words["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40}


@pytest.mark.parametrize("change, said", [
    (lambda w: w.pop("model"), "expected a tokenizer"), (lambda w: w.update(model={"type": "BPE", "vocab": {"a": -1}, "merges": []}), "expected a tokenizer"),
    (lambda w: w.update(model={"type": "BPE", "vocab": {"a": 1.5}, "merges": []}), "expected a tokenizer"),
    (lambda w: w.update(model={"type": "BPE", "vocab": {"a": 2**40}, "merges": []}), "expected a tokenizer"),
    (lambda w: w.update(model={"type": "BPE", "vocab": {"a": 2**32 - 2}, "merges": []}, added_tokens=[]), "expected token ids below 1048576"),
    (lambda w: w.update(model=[]), "expected a tokenizer"), (lambda w: w.update(decoder={"type": "ByteLevel" * 1000}), "expected a tokenizer"),
    (lambda w: w.update(decoder=None), "decoder must be"), (lambda w: w.update(added_tokens=5), "expected a tokenizer"),
    (lambda w: w["model"].update(merges=[["no", "such"]]), "expected a tokenizer"), (doubling, "normalizer: expected replacements"),
    (lambda w: w.update(normalizer={"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 20}), "normalizer: expected replacements"),
    (lambda w: w.update(normalizer={"type": "Prepend", "prepend": "x" * 10**6}), "normalizer: expected replacements"),
    (lambda w: w.update(normalizer={"type": "Replace", "pattern": {"Regex": "("}, "content": ""}), "expected a tokenizer")])
def test_a_hostile_tokenizer_is_named(model, change, said):
    message = engine_refusal(words_with(model, change))
    assert "tokenizer.json: " in message and said in message and len(message) < 600


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"{" * 100_000, b'{"a":' * 100_000, b"[" * 1_000_000, b'{"version":"1.0","version":"2.0"}'])
def test_a_tokenizer_that_is_no_json_is_named(model, content):
    (model / "tokenizer.json").write_bytes(content)
    assert "tokenizer.json: expected a tokenizer of the tokenizers library" in engine_refusal(model)


def test_a_tokenizer_that_is_too_large_is_not_read(model):
    os.truncate(model / "tokenizer.json", (128 << 20) + 1)
    assert "tokenizer.json: expected at most 134217728 bytes" in engine_refusal(model)


@pytest.mark.parametrize("token, data", [("<0x41>", b"A"), ("<0xfF>", b"\xff"), ("<0xZZ>", b"<0xZZ>"), ("<0x-1>", b"<0x-1>"), ("<0x_1>", b"<0x_1>"), ("<0x 1>", b"<0x 1>"),
                                         ("<0x\u0661\u0661>", "<0x\u0661\u0661>".encode())])
def test_a_byte_token_is_two_hexadecimal_digits(token, data):
    from paceline.tokenizer import _sentencepiece
    assert _sentencepiece(token) == data


@pytest.mark.parametrize("content", [b"", b"[]", b'{"eos_token_id":"2"}', b'{"eos_token_id":-1}', b'{"eos_token_id":[[2]]}', b'{"eos_token_id":1e400}', b'{"eos_token_id":true}',
                                     b'{"eos_token_id":2048}', b'{"eos_token_id":' + b"9" * 300 + b"}", b'{"eos_token_id":1,"eos_token_id":2}', b'{"a":' * 9 + b"1" + b"}" * 9])
def test_a_hostile_generation_config_is_named(model, content):
    (model / "generation_config.json").write_bytes(content)
    message = engine_refusal(model)
    assert ("generation_config.json: " in message or "eos_token_id" in message) and len(message) < 600


@pytest.mark.parametrize("kind", KINDS)
def test_mf6_the_core_s_own_list_is_what_is_gone_through(tmp_path, kind):
    write(tmp_path, KINDS[kind])
    expected = _core.Weights(_core.Backend(1, ""), core_config(read_config(tmp_path)), "fp32", "here").expected()
    assert {name: tuple(shape) for name, shape in expected} == dict(tensor_shapes(KINDS[kind]))
    assert {name for each, name in EVERY_TENSOR if each == kind} == {name for name, _ in expected}
