"""JSON by somebody hostile (MF7), and in it tokenizers and generation configs. Beside them: test_hostile_config.py, test_tokenizer.py."""

import json
import os
import subprocess
import sys
import time

import paceline
import pytest
from paceline.loading.safetensors import read_header
from paceline.loading.strict_json import parse_object
from test_hostile_files import engine_refusal, model  # noqa: F401 (a fixture)
from test_hostile_tensors import header_refused
from test_safetensors import ENTRY, file_of


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
    (lambda w: w["model"].update(merges=[["no", "such"]]), "expected a tokenizer"), (doubling, "normalizer and pre_tokenizer: expected"),
    (lambda w: w.update(normalizer={"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 20}), "normalizer and pre_tokenizer: expected"),
    (lambda w: w.update(normalizer={"type": "Prepend", "prepend": "x" * 10**6}), "normalizer and pre_tokenizer: expected"),
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
