"""The page with charts: whole in itself, and refused clearly where it cannot be drawn."""

import subprocess
import sys
import xml.etree.ElementTree

import pytest
from paceline.diagnosis.html import html_page, write_html
from test_causes import diagnosed


@pytest.fixture(scope="module")
def found():
    return diagnosed(alpha=0.5)


def test_it_is_one_page_with_four_charts_and_no_network(found, tmp_path):
    write_html(tmp_path / "page.html", found)
    text = (tmp_path / "page.html").read_text()
    charts = ["<svg" + part.split("</svg>")[0] + "</svg>" for part in text.split("<svg")[1:]]
    assert len(charts) == 4
    for chart in charts:
        root = xml.etree.ElementTree.fromstring(chart)
        links = [value for each in root.iter() for name, value in each.attrib.items() if name.endswith("href")]
        assert root.tag.endswith("svg") and all(link.startswith("#") for link in links)
        words = " ".join("".join(each.itertext()) for each in root.iter() if each.tag.endswith("text"))
        assert any(word in words for word in ("speedup", "accepted", "ms"))
    assert "<script" not in text and "@import" not in text and "url(http" not in text and " src=" not in text
    assert found.causes[0].evidence in text and f"{found.remedies[0].speedup:.2f}x" in text


def test_it_is_the_same_page_for_the_same_figures(found):
    assert html_page(found) == html_page(found)


def test_without_matplotlib_it_says_what_to_install():
    code = """
import sys
sys.modules["matplotlib"] = None
import paceline.commands.diagnose
from paceline.diagnosis import html
try:
    html._svg(html._passes, None)
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert 'pip install "paceline[report]"' in done.stdout, done.stderr


def test_nobody_loads_matplotlib_who_does_not_draw():
    code = "import sys, paceline, paceline.cli, paceline.diagnosis.html; assert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
