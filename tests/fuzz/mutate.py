"""Inputs from inputs: bytes changed, JSON changed as JSON, words of the format put where they do not belong. One seed, one sequence."""

import copy
import json
import random
import struct

NUMBERS = [0, 1, -1, 2, 3, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 255, 256, 257, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**53 + 1, 2**63 - 1, 2**63,
           2**64 - 1, 2**64, 10**30, 10**399, 0.0, -0.0, 0.5, 1.5, 1e-320, 1e-30, 1e30, 1e308, -1e308]
VALUES = [*NUMBERS, None, True, False, "", "a", "0", "16", "../x", "/x", "\0", "\n", "é", "𝄞", "x" * 300, [], [[]], {}, [0], [1, 2], {"a": 1}, [[[[[[[[[[]]]]]]]]]]]
BYTES = [b"\0", b"\xff", b"\x80", b"{", b"}", b"[", b"]", b'"', b"\\", b"\\ud800", b"\\u0000", b"NaN", b"Infinity", b"1e400", b"-0", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"../", b",,",
         b"9" * 401, b"[" * 70, b'{"a":' * 9]


class Mutator:
    def __init__(self, seed: int, corpus: list[bytes], words: list[str]) -> None:
        """words: of the format, put into it now and then."""
        self.random = random.Random(seed)
        self.corpus, self.words = corpus, words

    def next(self) -> bytes:
        """A mutation of a file of the corpus, or of two."""
        content = self.random.choice(self.corpus)
        for _ in range(self.random.choice([1, 1, 1, 2, 3, 6])):
            content = self.random.choice([self._json, self._json, self._json, self._bytes, self._bytes, self._word, self._splice])(content)
        return content[:1 << 16]

    def _bytes(self, content: bytes) -> bytes:
        at, pick = self.random.randrange(len(content) + 1), self.random
        end = min(len(content), at + pick.choice([0, 1, 1, 2, 8, 64]))
        new = pick.choice([b"", bytes([pick.randrange(256)]), pick.choice(BYTES), content[at:end] * 2,
                           bytes([content[at] ^ 1 << pick.randrange(8)]) if at < len(content) else b""])
        return content[:at] + new + content[end:]

    def _word(self, content: bytes) -> bytes:
        at = self.random.randrange(len(content) + 1)
        return content[:at] + self.random.choice(self.words or [""]).encode() + content[at:]

    def _splice(self, content: bytes) -> bytes:
        other = self.random.choice(self.corpus)
        return content[:self.random.randrange(len(content) + 1)] + other[self.random.randrange(len(other) + 1):]

    def _json(self, content: bytes) -> bytes:
        """Of the JSON that the content is, or that stands behind a length as in safetensors, whose length stays right most times."""
        for front in (0, 8):
            text = content[front:front + struct.unpack("<Q", content[:8])[0]] if front and len(content) > 8 else content[front:]
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                continue
            changed = self._dumped(self._changed(copy.deepcopy(value)))
            if not front:
                return changed
            length = len(changed) if self.random.random() < 0.9 else self.random.choice([0, 1, 2**24, 2**63, 2**64 - 1])
            return struct.pack("<Q", length) + changed + content[front + len(text):]
        return self._bytes(content)

    def _changed(self, value: object) -> object:
        places = []
        pending = [value]
        while pending:
            each = pending.pop()
            keys = list(each) if isinstance(each, dict) else range(len(each)) if isinstance(each, list) else []
            places += [(each, key) for key in keys]
            pending += [each[key] for key in keys]
        if not places:
            return self.random.choice(VALUES)
        holder, key = self.random.choice(places)
        kind = self.random.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[self.random.choice([*self.words, "a", "", str(key) + "x"])] = holder.pop(key)
        elif kind == 2:
            holder[key] = copy.deepcopy(self._any(places))
        elif kind == 3 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = self.random.choice([holder[key] + 1, holder[key] - 1, -holder[key], holder[key] * 2, holder[key] // 2 if abs(holder[key]) < 1e300 else 0])
        elif kind == 4 and self.words:
            holder[key] = self.random.choice(self.words)
        else:
            holder[key] = copy.deepcopy(self.random.choice(VALUES))
        return value

    def _any(self, places: list) -> object:
        holder, key = self.random.choice(places)
        return holder[key] if key in (holder if isinstance(holder, dict) else range(len(holder))) else None

    def _dumped(self, value: object) -> bytes:
        """Now and then with a key twice, which no dict has."""
        text = json.dumps(value)
        if self.random.random() < 0.15 and isinstance(value, dict) and value:
            key = self.random.choice(list(value))
            text = "{" + json.dumps(key) + ":" + json.dumps(value[key]) + "," + text[1:]
        return text.encode()
