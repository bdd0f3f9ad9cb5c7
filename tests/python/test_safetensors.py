"""Safetensors headers by whoever: what we accept the library accepts too, with the same values; all else is a ModelFileError."""

import json
import os
import re
import struct
import time

import numpy as np
import paceline
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paceline.loading.safetensors import read_header

ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def file_of(header, data=b"\0" * 24, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def refusal(path, content):
    path.write_bytes(content)
    with pytest.raises(paceline.ModelFileError) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def test_a_file_of_the_library_is_read_where_its_values_lie(path):
    values = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones((5,), np.float16), "deep.name": np.full((1, 2, 1), 7, np.int64)}
    safetensors.numpy.save_file(values, path, metadata={"format": "pt"})
    tensors = read_header(path)
    assert tensors.keys() == values.keys()
    for name, tensor in tensors.items():
        assert tensor.shape == values[name].shape
        assert path.read_bytes()[tensor.begin:tensor.begin + tensor.nbytes] == values[name].tobytes()


def test_tensors_need_not_be_in_the_order_of_their_bytes(path):
    path.write_bytes(file_of({"b": ENTRY | {"data_offsets": [24, 48]}, "a": ENTRY}, b"\0" * 48))
    assert read_header(path).keys() == {"a", "b"}


@pytest.mark.parametrize("change, complaint", [
    ({"data_offsets": [0, 20]}, "of 24 bytes"), ({"data_offsets": [24, 0]}, "24 bytes"), ({"data_offsets": [-24, 0]}, "inside the file"),
    ({"data_offsets": [4, 28]}, "inside the file|begin where"), ({"data_offsets": [0.0, 24]}, "inside the file"),
    ({"data_offsets": [0, 1e300]}, "inside the file"), ({"data_offsets": [0, 2**63]}, "inside the file"), ({"data_offsets": [0]}, "two data_offsets"),
    ({"data_offsets": None}, "two data_offsets"), ({"data_offsets": [False, 24]}, "two data_offsets"), ({"dtype": "F33"}, "a known dtype"),
    ({"dtype": 4}, "a known dtype"), ({"dtype": ["F32"]}, "a known dtype"), ({"shape": [2, 3.0]}, "positive sizes"),
    ({"shape": [2, -3]}, "positive sizes"), ({"shape": [0, 3]}, "positive sizes"), ({"shape": [2**32, 2**32]}, "positive sizes|bytes"),
    ({"shape": [True, 6]}, "positive sizes"), ({"shape": 6}, "positive sizes"), ({"shape": [1] * 7 + [2, 3]}, "at most 8"),
    ({"shape": [2**33, 2**33]}, "of .* bytes"), ({"extra": 1}, "dtype, shape and data_offsets")])
def test_a_bad_entry_is_named(path, change, complaint):
    said = refusal(path, file_of({"w": ENTRY | change}))
    assert "tensor w" in said and re.search(complaint, said), said


@pytest.mark.parametrize("header, data", [
    ({"a": ENTRY, "b": ENTRY | {"data_offsets": [12, 36]}}, b"\0" * 36),  # overlap
    ({"a": ENTRY, "b": ENTRY}, b"\0" * 24),                                # the same bytes twice
    ({"a": ENTRY, "b": ENTRY | {"data_offsets": [28, 52]}}, b"\0" * 52),  # a hole
    ({"a": ENTRY | {"data_offsets": [4, 28]}}, b"\0" * 28),                # does not begin at 0
    ({}, b"\0"), ({"a": ENTRY}, b"\0" * 25), ({"a": ENTRY}, b"\0" * 23)])
def test_bytes_belong_to_exactly_one_tensor(path, header, data):
    refusal(path, file_of(header, data))


@pytest.mark.parametrize("header", [
    b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}',
    b'{"a":{"dtype":"F32","dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}', b'{"__metadata__":{"k":"1","k":"2"}}',
    b'{"__metadata__":{"k":1}}', b'{"__metadata__":[]}', b'{"a":[]}', b'{"a":null}', b"[]", b" {}", b"\xef\xbb\xbf{}", b"{", b"{}x", b'{"\xff":1}',
    b'{"a":NaN}', b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"a":' + b'{"a":' * 50 + b"1" + b"}" * 51])
def test_a_header_that_is_not_one(path, header):
    refusal(path, file_of(header, b"\0" * (24 if b"[0,24]" in header else 0)))


@pytest.mark.parametrize("length", [0, 1, 2**24 + 1, 2**63, 2**64 - 1])
def test_a_header_length_beyond_the_file_is_refused_before_it_is_believed(path, length):
    assert "header" in refusal(path, file_of({"a": ENTRY}, length=length))


@pytest.mark.parametrize("content", [b"", b"1234567", b"PK\x03\x04" + b"\0" * 60, b"GGUF" + b"\3\0\0\0" * 20, b"\x80\x04" + b"\x95" * 40])
def test_other_formats(path, content):
    refusal(path, content)


def test_what_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")  # must not wait for a writer
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("fifo", "dangling", "missing", "."):
        with pytest.raises(paceline.ModelFileError, match="expected a regular file|cannot be read"):
            read_header(tmp_path / name)


def test_many_tensors_take_linear_time(path):
    entry = '"%s":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}'
    for count, allowed in ((60_000, True), (70_000, False)):
        path.write_bytes(file_of(("{" + ",".join(entry % (i, i, i + 1) for i in range(count)) + "}").encode(), b"\0" * count))
        start = time.process_time()
        if allowed:
            assert len(read_header(path)) == count
        else:
            with pytest.raises(paceline.ModelFileError, match="at most 65536 tensors"):
                read_header(path)
        assert time.process_time() - start < 5


BASE = file_of({"a": ENTRY, "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}}, bytes(range(32)))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, len(BASE) - 1), value=st.integers(0, 255), cut=st.integers(0, 3))
def test_what_we_accept_the_library_accepts_and_sees_alike(path, position, value, cut):
    """One byte changed, a few cut off: mostly refused; whatever passes means the same to both."""
    content = bytearray(BASE)
    content[position] = value
    path.write_bytes(content[:len(content) - cut])
    try:
        tensors = read_header(path)
    except paceline.ModelFileError:
        return
    theirs = dict(safetensors.deserialize(path.read_bytes()))
    assert tensors.keys() == theirs.keys()
    for name, tensor in tensors.items():
        assert (tensor.dtype, list(tensor.shape)) == (theirs[name]["dtype"], theirs[name]["shape"])
        assert path.read_bytes()[tensor.begin:tensor.begin + tensor.nbytes] == bytes(theirs[name]["data"])
