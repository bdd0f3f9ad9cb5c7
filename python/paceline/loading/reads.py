"""Reads that give what they were asked for: the system may give less at any time."""

import os


def read_exactly(descriptor: int, count: int, position: int) -> bytes:
    """count bytes from position on; fewer only where the file ends before. Raises OSError."""
    parts = []
    while count > 0 and (part := os.pread(descriptor, count, position)):
        parts.append(part)
        count -= len(part)
        position += len(part)
    return b"".join(parts)
