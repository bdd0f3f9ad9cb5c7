"""Values of the benches' command lines: argparse turns an ArgumentTypeError into one line."""

import argparse
import pathlib


def in_range(kind, least, most):
    """A type for argparse: an int or a float in [least, most]."""

    def value_of(text):
        try:
            value = kind(text)
            if least <= value <= most:
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"must be {'an int' if kind is int else 'a number'} in [{least}, {most}], got {text}")

    return value_of


threads = in_range(int, 1, 1024)
repetitions = in_range(int, 1, 10_000)
tau = in_range(int, 0, 64)
share = in_range(float, 0, 1)


def pair(names):
    """A type for argparse: one of the names, or a directory with target and draft."""

    def value_of(text):
        if text not in names and not all((pathlib.Path(text) / role).is_dir() for role in ("target", "draft")):
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(names)} or a directory with target and draft, got {text}")
        return text

    return value_of


def new_file(text):
    """A type for argparse: where a file can be written, said before the hour that fills it."""
    path = pathlib.Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file in a directory that exists, got {text}")
    return path
