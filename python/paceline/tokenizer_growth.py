"""What a tokenizer.json may make of a text: a few lines of it could make a terabyte of a prompt of one letter."""

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

from paceline._core import ModelFileError
from paceline.loading.strict_json import shown

MAX_GROWTH = 16
MAX_ADDED = 64
"""What the steps before the model may do to a text: multiply its length, one after another, and add characters each time. SentencePiece
replaces and prepends one character by one."""
MAX_SPECIAL = 64
"""Ids that a post-processor may add; tokenizers in use add one or two."""
MAX_CHARS_MAP = 16 << 20
LONGEST_FORM = 64
"""Bytes that a map of characters may make of one; the longest of Unicode's own has 33."""


def check_growth(definition: Mapping[str, Any], source: str) -> None:
    """definition: the tokenizer's own, as the library writes it. Raises ModelFileError."""
    _check_before(definition, source)
    _check_behind(definition, source)
    dropout = definition["model"].get("dropout")
    if dropout:
        raise ModelFileError(f"{source}: model: dropout: expected none, since a prompt must be the same ids each time, found {shown(dropout)}")


def _check_before(definition: Mapping[str, Any], source: str) -> None:
    growth, added, maps = 1.0, 0, 0
    for each in (*_steps(definition["normalizer"]), *_steps(definition["pre_tokenizer"])):
        content = len(each.get("content") or each.get("prepend") or "")
        if "content" in each:
            pattern = len((each.get("pattern") or {}).get("String", ""))  # none or a regex may match between any two characters
            growth *= max(1.0, content / pattern) if pattern else 1.0 + content
        if each.get("type") == "ByteLevel":
            growth *= 2  # each byte becomes a character of up to two
        added += content
        if "precompiled_charsmap" in each:
            maps += 1
            _check_map(each["precompiled_charsmap"], source)
    if growth > MAX_GROWTH or added > MAX_ADDED or maps > 1:
        raise ModelFileError(f"{source}: normalizer and pre_tokenizer: expected steps that add {MAX_ADDED} characters in all and make a text "
                             f"{MAX_GROWTH} times as long at most, with one map of characters, found {added}, {growth:.0f} and {maps}")


def _check_map(charsmap: Any, source: str) -> None:
    """SentencePiece's: the size of a trie in 4 bytes, the trie, and the forms that it leads to, each with a 0 behind it."""
    try:
        data = base64.b64decode(charsmap or "")
    except (TypeError, ValueError, binascii.Error) as error:
        raise ModelFileError(f"{source}: normalizer: precompiled_charsmap: expected base64, found {shown(error)}") from None
    if len(data) > MAX_CHARS_MAP:
        raise ModelFileError(f"{source}: normalizer: precompiled_charsmap: expected at most {MAX_CHARS_MAP} bytes, found {len(data)}")
    longest = max(map(len, data[4 + int.from_bytes(data[:4], "little"):].split(b"\0")))
    if longest > LONGEST_FORM:
        raise ModelFileError(f"{source}: normalizer: precompiled_charsmap: expected at most {LONGEST_FORM} bytes for a character, found {longest}")


def _check_behind(definition: Mapping[str, Any], source: str) -> None:
    """Special tokens around the text. In a template each name stands for any number of ids, and the text may be named again and again."""
    texts, special = 1, 0
    for each in _steps(definition["post_processor"]):
        pieces, named = each.get("single") or [], each.get("special_tokens") or {}
        if "single" in each:
            texts *= sum(piece.get("Sequence", {}).get("id") == "A" for piece in pieces)
        special += sum(len(named.get(piece["SpecialToken"]["id"], {}).get("ids", ())) for piece in pieces if "SpecialToken" in piece)
        special += sum(name in each for name in ("cls", "sep"))
    if texts != 1 or special > MAX_SPECIAL:
        raise ModelFileError(f"{source}: post_processor: expected the text once and at most {MAX_SPECIAL} special tokens around it, "
                             f"found the text {texts} times and {special} tokens")


def _steps(of: Any) -> Iterator[Mapping[str, Any]]:
    """Of a normalizer, a pre-tokenizer or a post-processor: itself, or those of a sequence of them."""
    pending = [of]
    while pending:
        each = pending.pop()
        if isinstance(each, dict):
            yield each
            for several in ("normalizers", "pretokenizers", "processors"):
                pending += each.get(several) or []
