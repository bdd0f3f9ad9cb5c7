"""Text as bytes: what a token says, streams without broken characters, stop strings held back, drafts with another tokenizer."""

import random

import pytest
import tokenizers
from paceline import ModelFileError, demo_pair
from paceline.tokenizer import TextStream, Tokenizer, refuse_other_tokenizer
from tokenizers import decoders, models, pre_tokenizers

BUNDLED = Tokenizer.read(demo_pair()[0])


def byte_level(tokens):
    inner = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return Tokenizer(inner, "made here")


def sentencepiece():
    """Llama 2's kind: pieces with U+2581 for a space, single bytes as <0xNN>."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581the", "\u2581", "é", "caf"]
    inner = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>"))
    inner.add_special_tokens(["<s>", "</s>"])
    inner.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return Tokenizer(inner, "made here"), {piece: i for i, piece in enumerate(pieces)}


def streamed(token_bytes, ids, stops=()):
    stream = TextStream(token_bytes, stops)
    return [stream.feed([i]) for i in ids] + [stream.finish([], None)]


def test_the_bytes_of_a_text_are_those_of_its_tokens():
    text = "naïve = '✓ 𝄞 \\n'\n\tdef café(x): return \"日本語\"\n"
    assert b"".join(BUNDLED.token_bytes[i] for i in BUNDLED.encode(text)) == text.encode()


def test_joined_bytes_are_the_library_s_own_decoding():
    generator = random.Random(1)
    inner = tokenizers.Tokenizer.from_file(BUNDLED.source)
    for _ in range(200):
        ids = [generator.randrange(BUNDLED.vocab_size) for _ in range(20)]
        assert "".join(streamed(BUNDLED.token_bytes, ids)) == inner.decode(ids, skip_special_tokens=True)


def test_a_stream_never_shows_half_a_character():
    ids = BUNDLED.encode("日本語 𝄞 é")
    chunks = streamed(BUNDLED.token_bytes, ids)
    assert "�" not in "".join(chunks) == "日本語 𝄞 é"
    assert max(len(BUNDLED.token_bytes[i]) for i in ids) < 4, "every token is part of a character here"


def test_a_character_that_is_never_completed_becomes_one_mark():
    first = BUNDLED.encode("é")[0]
    assert streamed(BUNDLED.token_bytes, [first])[-1] == "�"


def test_sentencepiece_bytes():
    tokenizer, ids = sentencepiece()
    text = [ids["<s>"], ids["\u2581the"], ids["\u2581"], ids["caf"], ids["<0xC3>"], ids["<0xA9>"], ids["</s>"]]
    assert b"".join(tokenizer.token_bytes[i] for i in text).decode() == " the café"
    assert tokenizer.vocab_size == 263


def test_added_tokens():
    inner = tokenizers.Tokenizer.from_file(BUNDLED.source)
    inner.add_tokens(["Ünseen"])
    inner.add_special_tokens(["<|end|>"])
    tokenizer = Tokenizer(inner, "made here")
    assert tokenizer.vocab_size == BUNDLED.vocab_size + 2
    assert tokenizer.token_bytes[-2:] == ["Ünseen".encode(), b""]


def test_an_unknown_decoder_is_refused():
    inner = tokenizers.Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    inner.decoder = decoders.WordPiece()
    with pytest.raises(ModelFileError, match="decoder must be .* found .*WordPiece"):
        Tokenizer(inner, "made here")


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFileError, match="tokenizer.json: expected a tokenizer"):
        Tokenizer.read(tmp_path)


@pytest.mark.parametrize("text, stops, shown, rest", [
    ("abc", [b"bd"], ["a", "", "bc"], ""),       # a beginning that comes to nothing is given back
    ("abc", [b"cd"], ["a", "b", ""], "c"),       # at the end, too
    ("aab", [b"aac"], ["", "", "aab"], ""),
    ("aaa", [b"aab"], ["", "", "a"], "aa"),      # the tail that still can become the stop is "aa"
    ("xyz", [b"yq", b"xyzw"], ["", "", ""], "xyz"),
])
def test_what_may_become_a_stop_string_is_held_back(text, stops, shown, rest):
    token_bytes = [bytes([b]) for b in range(128)]
    stream = TextStream(token_bytes, stops)
    assert [stream.feed([ord(c)]) for c in text] == shown
    assert stream.finish([], None) == rest


def test_the_text_ends_before_the_stop_string():
    token_bytes = [b"so", b" lo", b"ng, and", b" more"]
    stream = TextStream(token_bytes, [b"long"])
    assert [stream.feed([0]), stream.feed([1]), stream.finish([2], b"long")] == ["so", " ", ""]


def test_drafts_may_know_fewer_or_more_tokens():
    target = byte_level(["a", "b", "c"])
    refuse_other_tokenizer(target, byte_level(["a", "b"]))
    refuse_other_tokenizer(target, byte_level(["a", "b", "c", "d"]))


def test_a_draft_with_another_tokenizer_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"another: 2 of its 3 ids differ, first id 1, which is 'c' in made here and 'b' in made here"):
        refuse_other_tokenizer(byte_level(["a", "b", "c"]), byte_level(["a", "c", "b"]))
