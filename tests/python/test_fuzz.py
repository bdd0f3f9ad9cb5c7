"""The fuzzers, bounded: every file of the corpus and some hundred mutations per target, seeded. `python -m tests.fuzz` runs them for long.

Test of the test: a bug planted in each parser is found within the very same run."""

import json
import re
import time

import numpy
import pytest
from paceline import ModelFileError, calibration, chat_template, engine_config, template_budget, tokenizer, tokenizer_growth
from paceline.loading import checkpoint, config, fields, rope, safetensors, strict_json, weights_cache
from tests.fuzz import __main__ as command
from tests.fuzz.run import findings
from tests.fuzz.targets import TARGETS

CASES = 600


def found(name, cases=CASES):
    return next(findings(TARGETS[name], 1, cases=cases), None)


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_and_its_mutations(name):
    assert found(name) is None


def unless(small):
    """A limit that is there, and too high: without any a planted bug would take the machine with it."""
    if not small:
        raise ModelFileError("far too late")
    return True


def accepts(*_, **__):
    """A check that is not there."""


BUGS = [
    ("strict_json", strict_json, "_without_duplicates", lambda pairs, where: dict(pairs)), ("strict_json", strict_json, "_depth", lambda value: 0),
    ("strict_json", strict_json, "_refuse_constant", lambda name, where: 0.0), ("strict_json", strict_json, "_SURROGATE", re.compile(b"never")),
    ("safetensors", safetensors, "StoredTensor", lambda file, state, dtype, shape, begin, nbytes, really=safetensors.StoredTensor: really(
        file, state, dtype, shape[::-1], begin, nbytes)),
    ("safetensors", safetensors, "parse_object", lambda data, where: json.loads(data)),
    ("safetensors", safetensors, "_is_int", lambda value, least, most: least <= value <= most),
    ("index", checkpoint, "_check_shard_name", accepts), ("config", config, "rope_of", lambda fields, head_dim, context: ((float("inf"),) * (head_dim // 2), 1.0)),
    ("config", fields.Fields, "integer", lambda self, name, default=None, most=0: int(self.values.get(name) or default or 0)),
    ("rope", rope, "rope_of", rope._computed), ("rope", rope, "_kind", lambda fields: str(fields.values.get("type", "default"))),
    ("generation_config", checkpoint, "_eos_token_ids", lambda directory, config: tuple(
        [ids] if not isinstance(ids := strict_json.read_json(directory / "generation_config.json", 1 << 20).get("eos_token_id", 2), list) else ids)),
    ("weights_cache", weights_cache, "_checksums", lambda data: numpy.frombuffer(bytes(8), "<u8")),
    ("weights_cache", weights_cache, "type", lambda value: int), ("tokenizer", tokenizer, "MAX_IDS", 1 << 24), ("tokenizer", tokenizer, "_BYTE", re.compile("<0x..>")),
    ("tokenizer", tokenizer, "check_growth", lambda definition, source: None), ("tokenizer", tokenizer_growth, "_check_before", accepts), ("tokenizer", tokenizer_growth, "_check_behind", accepts),
    ("tokenizer", tokenizer.tokenizers.Tokenizer, "no_padding", accepts), ("tokenizer", tokenizer.tokenizers.Tokenizer, "no_truncation", accepts),
    ("chat_template", template_budget.Budget, "spend", lambda self, characters: unless(characters < 64 << 20)),
    ("chat_template", template_budget.Budget, "tick", lambda self, elements=0: unless(time.thread_time() < self._until + 1.5)),
    ("tokenizer_config", chat_template, "_sources", lambda path, given: {"default": given}),
    ("special_tokens", chat_template, "_special_tokens", lambda directory, config: strict_json.read_json(directory / "special_tokens_map.json", 1 << 20)),
    ("engine_config", engine_config, "NAMES", (*engine_config.NAMES, "max_num_seqs")), ("engine_config", engine_config, "_is_default", lambda value, default: True),
    ("costs", calibration, "_is_cost", lambda each: len(each) == 6)]


@pytest.mark.parametrize("name, holder, attribute, bug", BUGS)
def test_a_planted_bug_is_found(name, holder, attribute, bug, monkeypatch):
    if attribute == "_checksums":  # of a file in which nothing is checked
        monkeypatch.setattr(weights_cache.np, "flatnonzero", lambda wrong: [])
    monkeypatch.setattr(holder, attribute, bug, raising=False)
    assert found(name, cases=CASES) is not None


def test_every_parser_has_a_planted_bug():
    assert {name for name, *_ in BUGS} == TARGETS.keys()


def test_one_seed_is_one_sequence():
    from tests.fuzz.mutate import Mutator
    first, again = (Mutator(7, TARGETS["config"].corpus(), TARGETS["config"].words) for _ in range(2))
    assert [first.next() for _ in range(50)] == [again.next() for _ in range(50)]


def test_the_command_keeps_what_it_finds(monkeypatch, tmp_path, capsys):
    """An exit status, and a file that is judged first the next time; a process that dies is a finding too."""
    from tests.fuzz import run
    monkeypatch.setattr(run, "DATA", tmp_path)
    (tmp_path / "strict_json").mkdir()
    monkeypatch.setattr(strict_json, "_depth", lambda value: 0)
    (tmp_path / "inside").mkdir()
    monkeypatch.setattr(command, "LARGEST", 1)
    assert command._run("strict_json", 30.0, 1, tmp_path / "inside") == 1
    assert "deep" in capsys.readouterr().out
    (kept,) = (tmp_path / "strict_json").iterdir()
    assert (tmp_path / "inside" / run.LAST).read_bytes() == kept.read_bytes()
    monkeypatch.setattr(command.subprocess, "run", lambda *_, **__: command.subprocess.CompletedProcess([], -11))
    assert command._in_a_process("strict_json", 1.0, 1) is False and "ended with -11" in capsys.readouterr().out
