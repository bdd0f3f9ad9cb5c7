"""tokenizer.json, and text as bytes.

The text of a token is a byte string of its own, whatever stands around it: the bytes of a text are the bytes of its tokens
joined. Stop strings are matched on them, streams decode them, and a continuation keeps the space it starts with.
"""

import codecs
import concurrent.futures
import functools
import json
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from paceline._core import ModelFileError
from paceline.chat_template import ChatTemplate
from paceline.loading.files import read_bytes
from paceline.loading.strict_json import shown
from paceline.tokenizer_growth import check_growth

MAX_FILE = 128 << 20
"""Bytes of a tokenizer.json; the largest vocabularies in use take 35 MB."""
MAX_IDS = 1 << 20
"""Ids at most: the table of their bytes is as long as the largest id says, whatever the file's size."""


LONG_TEXT = 1 << 14
"""Characters. The library takes 1.5 us for each and keeps the GIL, but for batches: longer ones go as a batch, in a thread of their own."""


class Tokenizer:
    """A `tokenizers` tokenizer whose tokens have bytes: byte-level BPE, or SentencePiece with byte fallback."""

    def __init__(self, inner: tokenizers.Tokenizer, source: str, directory: Path | None = None) -> None:
        """inner: nobody else's, for it is changed. directory: where the chat template is, if anywhere."""
        self._inner = inner
        self.source = source
        self._directory = directory
        self.vocab = inner.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(self.vocab.values(), default=-1)
        """1 + the largest id, added tokens included."""
        if self.vocab_size > MAX_IDS:
            raise ModelFileError(f"{source}: expected token ids below {MAX_IDS}, found {self.vocab_size - 1}")
        self._definition: dict[str, Any] = json.loads(inner.to_str())
        check_growth(self._definition, source)
        inner.no_truncation()  # a prompt is all of its text, and nothing but it
        inner.no_padding()
        self.token_bytes = self._bytes_of_all()
        """[vocab_size] the text of each token; special tokens and unused ids have none."""

    @classmethod
    def read(cls, path: Path) -> "Tokenizer":
        """A tokenizer.json, or the directory that holds one."""
        file = path / "tokenizer.json" if path.is_dir() else path
        data = read_bytes(file, MAX_FILE, given=file == path)
        try:
            inner = tokenizers.Tokenizer.from_buffer(data)
        except BaseException as error:
            raise _refusal(str(file), error) from error
        return cls(inner, str(file), file.parent)

    @classmethod
    def copy_of(cls, given: tokenizers.Tokenizer, source: str, directory: Path | None = None) -> "Tokenizer":
        """Of an object that stays the caller's."""
        inner = tokenizers.Tokenizer.from_str(given.to_str())
        inner.encode_special_tokens = given.encode_special_tokens  # which its text does not say
        return cls(inner, source, directory)

    @functools.cached_property
    def longest_token(self) -> int:
        """Bytes of it."""
        return max(map(len, self.token_bytes))

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids, with the special tokens that the tokenizer itself adds (a BOS, for instance), or without them."""
        try:
            if len(text) <= LONG_TEXT:
                return self._inner.encode(text, add_special_tokens=special_tokens).ids
            return _beside(lambda: self._inner.encode_batch_fast([text], add_special_tokens=special_tokens)[0].ids)
        except BaseException as error:
            raise _refusal(self.source, error, "a tokenizer that can encode a prompt") from None

    def shown_texts(self) -> dict[int, str]:
        """Of every id, for people: special tokens by their names, a part of a character as U+FFFD."""
        names = {i: name for name, i in self.vocab.items()}
        return {i: text.decode("utf-8", "replace") or names.get(i, "") for i, text in enumerate(self.token_bytes)}

    @functools.cached_property
    def chat_template(self) -> ChatTemplate | None:
        """Read when it is first asked for. Raises ModelFileError."""
        return ChatTemplate.read(self._directory) if self._directory else None

    def _bytes_of_all(self) -> list[bytes]:
        kinds = json.dumps(self._definition["decoder"])
        if '"ByteLevel"' in kinds:
            to_bytes = _byte_level
        elif '"ByteFallback"' in kinds or '"Metaspace"' in kinds:
            to_bytes = _sentencepiece
        else:
            raise ModelFileError(f"{self.source}: decoder must be ByteLevel, ByteFallback or Metaspace, found {shown(kinds)}")
        table = [b""] * self.vocab_size
        for token, i in self.vocab.items():
            table[i] = to_bytes(token)
        for i, added in self._inner.get_added_tokens_decoder().items():
            table[i] = b"" if added.special else added.content.encode()
        return table


def _beside(body: Callable[[], list[int]]) -> list[int]:
    """body(), in a thread that nobody waits for once a signal has ended the wait."""
    made: concurrent.futures.Future[list[int]] = concurrent.futures.Future()

    def run() -> None:
        try:
            made.set_result(body())
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=run, name="paceline encode", daemon=True).start()
    return made.result()


def _refusal(source: str, error: BaseException, expected: str = "a tokenizer of the tokenizers library") -> ModelFileError:
    """The library raises bare Exceptions, and where it panics something that is none. Whatever it did not raise goes on."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return ModelFileError(f"{source}: expected {expected}, found: {shown(error)}")


def refuse_other_tokenizer(target: Tokenizer, draft: Tokenizer) -> None:
    """A draft must mean the same by an id as the target; it may know fewer or more of them. Raises ValueError."""
    wrong = [(i, token) for token, i in draft.vocab.items() if i < target.vocab_size and target.vocab.get(token) != i]
    if not wrong:
        return
    first, token = min(wrong)
    names = {i: text for text, i in target.vocab.items()}
    raise ValueError(
        f"[Engine] draft must have the target's tokenizer, got another: {len(wrong)} of its {len(draft.vocab)} ids differ, first id {first}, "
        f"which is {token!r} in {draft.source} and {names.get(first)!r} in {target.source}")


class TextStream:
    """Token ids in, text out: whole characters only, and nothing that may still become a stop string."""

    def __init__(self, token_bytes: Sequence[bytes], stops: Sequence[bytes]) -> None:
        self._token_bytes = token_bytes
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = b""

    def feed(self, token_ids: Sequence[int]) -> str:
        data = self._held + b"".join(map(self._token_bytes.__getitem__, token_ids))
        ready = len(data) - self._undecided(data)
        self._held = data[ready:]
        return self._decoder.decode(data[:ready])

    def finish(self, token_ids: Sequence[int], stop: bytes | None) -> str:
        """The last tokens. The text ends before `stop`, which these tokens have completed."""
        data = self._held + b"".join(map(self._token_bytes.__getitem__, token_ids))
        self._held = b""
        return self._decoder.decode(data if stop is None else data[:data.index(stop)], final=True)

    def state(self) -> tuple[bytes, tuple[bytes, int]]:
        """What it holds back, for `go_back`."""
        return self._held, self._decoder.getstate()

    def go_back(self, state: tuple[bytes, tuple[bytes, int]]) -> None:
        """As if nothing had been fed since it was in that state."""
        self._held = state[0]
        self._decoder.setstate(state[1])

    def _undecided(self, data: bytes) -> int:
        """Length of the longest tail that a stop string starts with."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(data)), longest, -1):
                if data.endswith(stop[:length]):
                    longest = length
                    break
        return longest


def _byte_level_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character: printable ones as themselves, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


_ALPHABET = _byte_level_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes(_ALPHABET[character] for character in token)
    except KeyError:  # not made of that alphabet: a token added by hand
        return token.encode()


_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


def _sentencepiece(token: str) -> bytes:
    if _BYTE.fullmatch(token):
        return bytes.fromhex(token[3:5])
    return token.replace("\u2581", " ").encode()
