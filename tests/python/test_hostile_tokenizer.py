"""tokenizer.json by somebody hostile: prompts that are cut, filled up, blown up or different each time (row SE1). What is harmless about it
stays as it was: see test_tokenizer.py."""

import base64
import json
import pathlib

import pytest
import tokenizers
from paceline import Engine, ModelFileError, demo_pair
from paceline.tokenizer import Tokenizer
from test_tokenizer import BUNDLED

TEXT = "def main(argv=None): return 5"
PADDING = {"strategy": {"Fixed": 500}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
TRUNCATION = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
TEXT_ITSELF, OTHER_TEXT, TOKEN = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}, {"SpecialToken": {"id": "S", "type_id": 0}}


def template(single, ids=1):
    return {"type": "TemplateProcessing", "single": single, "pair": [TEXT_ITSELF, OTHER_TEXT], "special_tokens": {"S": {"id": "S", "ids": [1] * ids, "tokens": ["!"] * ids}}}


def charsmap(longest):
    """An empty trie, and a form of so many bytes."""
    trie = bytes(1024)
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(len(trie).to_bytes(4, "little") + trie + b"a\0" + b"x" * longest + b"\0").decode()}


def sequence(name, kind, *each):
    return {"type": "Sequence", name: list(each) * kind}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
PREPEND = {"type": "Prepend", "prepend": "x" * 40}


def definition(model=None, **changes):
    whole = json.loads(pathlib.Path(BUNDLED.source).read_text())
    return whole | changes | {"model": whole["model"] | (model or {})}


def written(directory, **changes):
    (directory / "tokenizer.json").write_text(json.dumps(definition(**changes)))
    return directory


@pytest.mark.parametrize("changes", [{"padding": PADDING}, {"truncation": TRUNCATION}, {"padding": PADDING, "truncation": TRUNCATION}, {"model": {"dropout": 0.0}}])
def test_se1_a_prompt_is_all_of_its_text_and_nothing_else(tmp_path, changes):
    assert Tokenizer.read(written(tmp_path, **changes)).encode(TEXT) == BUNDLED.encode(TEXT)


def test_se1_an_object_of_the_caller_is_left_alone():
    given = tokenizers.Tokenizer.from_str(json.dumps(definition(padding=PADDING, truncation=TRUNCATION)))
    given.encode_special_tokens = True
    with Engine(demo_pair()[0], tokenizer=given, warmup=False) as engine:
        assert list(engine.generate(TEXT, max_tokens=1).prompt_token_ids) == BUNDLED.encode(TEXT)
        assert len(engine.generate("<|endoftext|>", max_tokens=1).prompt_token_ids) > 1  # as text, since the object says so
        assert given.padding and given.truncation and len(given.encode(TEXT).ids) == 500
        given.add_tokens(["def main"])
        assert list(engine.generate(TEXT, max_tokens=1).prompt_token_ids) == BUNDLED.encode(TEXT)


@pytest.mark.parametrize("changes, said", [
    ({"post_processor": template([TOKEN] * 1000 + [TEXT_ITSELF], 1000)}, "post_processor: expected the text once and at most 64 special tokens around it, found the text 1 times and 1000000"),
    ({"post_processor": template([TOKEN, TEXT_ITSELF], 65)}, "and 65 tokens"), ({"post_processor": template([TEXT_ITSELF] * 1000)}, "found the text 1000 times"), ({"post_processor": template([TOKEN])}, "found the text 0 times"),
    ({"post_processor": sequence("processors", 40, template([TEXT_ITSELF, TOKEN], 2))}, "and 80 tokens"), ({"model": {"dropout": 0.5}}, "model: dropout: expected none"),
    ({"pre_tokenizer": sequence("pretokenizers", 5, BYTE_LEVEL)}, "16 times as long at most, with one map of characters, found 0, 32"),
    ({"normalizer": sequence("normalizers", 40, {"type": "ByteLevel"})}, "16 times as long"), ({"normalizer": sequence("normalizers", 5, REPLACE)}, "16 times as long"),
    ({"normalizer": sequence("normalizers", 2, PREPEND)}, "add 64 characters in all"), ({"normalizer": charsmap(65)}, "precompiled_charsmap: expected at most 64 bytes for a character, found 65"),
    ({"normalizer": charsmap(1 << 20)}, "precompiled_charsmap"), ({"normalizer": sequence("normalizers", 2, charsmap(40))}, "one map of characters")])
def test_se1_what_blows_a_prompt_up_is_refused_by_name(tmp_path, changes, said):
    with pytest.raises(ModelFileError, match=said) as error:
        Tokenizer.read(written(tmp_path, **changes))
    assert str(error.value).startswith(str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize("changes, more", [
    ({"post_processor": template([TOKEN, TEXT_ITSELF, TOKEN])}, 2), ({"post_processor": sequence("processors", 1, BYTE_LEVEL, template([TOKEN, TEXT_ITSELF]))}, 1),
    ({"pre_tokenizer": sequence("pretokenizers", 1, {"type": "Digits", "individual_digits": True}, BYTE_LEVEL | {"use_regex": True})}, 1),
    ({"normalizer": sequence("normalizers", 1, {"type": "NFC"}, charsmap(33))}, 0),
    ({"post_processor": {"type": "BertProcessing", "sep": ["!", 1], "cls": ["!", 1]}}, 2)])
def test_se1_what_tokenizers_in_use_have_is_taken(tmp_path, changes, more):
    assert len(Tokenizer.read(written(tmp_path, **changes)).encode(TEXT)) == len(BUNDLED.encode(TEXT)) + more
