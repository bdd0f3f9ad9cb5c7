"""The guide's commands are the command line's, its links lead somewhere, and its words for causes are those that diagnose says."""

import re
import shlex
from pathlib import Path

import pytest
from paceline.cli import _parser
from paceline.diagnosis.causes import NAMES

GUIDE = Path(__file__).parents[2] / "docs/guide"
PAGES = sorted(GUIDE.glob("*.md"))
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
COMMANDS = [(name, line) for name, text in TEXTS.items() for line in re.findall(r"^(?:\$ )?(paceline .*)$", text, re.MULTILINE)]


@pytest.mark.parametrize("page, line", COMMANDS)
def test_commands_are_understood(page, line):
    _parser().parse_args(shlex.split(line, comments=True)[1:])


def test_links_lead_somewhere_and_the_index_has_every_page():
    assert len(COMMANDS) >= 8
    for name, text in TEXTS.items():
        for link in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (GUIDE / link).exists(), (name, link)
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", TEXTS["README.md"])) == {page.name for page in PAGES} - {"README.md"}


def test_the_page_of_causes_has_them_all():
    assert set(re.findall(r"`(\w+)`(?=[^|]*\|)", "\n".join(re.findall(r"^\| `.*", TEXTS["why-is-it-slow.md"], re.MULTILINE)))) >= NAMES.keys()
