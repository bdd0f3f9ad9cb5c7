"""Fuzzers of the parsers that are ours: seeded, aware of structure, with a corpus in the tree. `python -m tests.fuzz --help`"""
