import math
import re
from html.parser import HTMLParser
from importlib.metadata import version

import pytest

from balora.report import PRETRAINED, Run, write_page

VOID = {"meta", "br", "img", "hr", "link", "input"}


class Outline(HTMLParser):
    """Collects headings, attributes and text, and checks that tags are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts, self.headings = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())
            if self.open and self.open[-1] in ("h1", "h2", "h3"):
                self.headings.append(data.strip())


@pytest.fixture
def page(tmp_path, runs, histories):
    def write(**changes):
        settings = {
            "title": "Paraphrases",
            "runs": runs,
            "histories": histories,
            "recipe_text": "method: balora\nrank: 8",
            "task_metric": "accuracy",
            "drift_metric": "kl_to_base",
        }
        path = tmp_path / "report" / "index.html"
        write_page(path, **(settings | changes))
        html = path.read_text(encoding="utf-8")
        outline = Outline()
        outline.feed(html)
        assert outline.open == []
        return html, outline

    return write


def test_sections_come_in_order(page):
    html, outline = page(notes=["A small sample."])
    assert outline.headings == [
        "Paraphrases",
        "Results",
        "Learned against lost",
        "Training",
        "What the metrics mean",
        "Every run",
        "Recipe",
    ]
    assert outline.tags.count("svg") == 2
    assert "A small sample." in outline.texts
    assert "method: balora\nrank: 8" in outline.texts
    assert any(text.startswith("On mrpc, balora does best") for text in outline.texts)
    assert f"torch {version('torch')}" in html
    assert f"peft {version('peft')}" in html


def test_the_page_needs_nothing_from_elsewhere(page):
    html, outline = page()
    assert "script" not in outline.tags
    assert "link" not in outline.tags
    assert "@import" not in html
    references = [value for name, value in outline.attributes if name in ("src", "href", "xlink:href")]
    references += re.findall(r"url\(([^)]*)\)", html)
    assert references
    assert all(reference.startswith("#") for reference in references)
    # What is left of web addresses are the names of XML namespaces, which are never fetched.
    assert set(re.findall(r"https?://[^\"' >]*", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_everything_from_the_user_is_escaped(page):
    evil = "<script>alert('x')</script>"
    metrics = {"accuracy": 0.5, "kl_to_base": 0.1, evil: 1.0}
    made = [Run(evil, seed, evil, metrics, 1.0, 1.0, 1) for seed in (1, 2)]
    made.append(Run("lora", 1, evil, metrics, 1.0, 1.0, 1))
    logs = {run.id: [{"step": 1, "loss": 1.0, f"loss_{evil}": 1.0}] for run in made}
    html, outline = page(title=evil, runs=made, histories=logs, recipe_text=evil, notes=[evil])
    assert "<script" not in html
    assert "script" not in outline.tags
    assert outline.tags.count("svg") == 2
    assert outline.texts.count(evil) >= 8  # title twice, note, tables, metric columns, figure labels, recipe


def test_missing_numbers_are_dashes(page):
    made = [
        Run(PRETRAINED, 1, "t", {"accuracy": 0.5}, 0.0, 10.0, 0),
        Run("lora", 1, "t", {"accuracy": math.nan, "f1": 0.25}, 1.0, 10.0, 1),
    ]
    html, outline = page(runs=made, histories={})
    assert "nan" not in html.lower()
    assert "–" in outline.texts
    assert "svg" not in outline.tags
    assert {"Learned against lost", "Training"}.isdisjoint(outline.headings)


def test_a_single_seed_is_reported_without_a_spread(page, runs):
    html, outline = page(runs=[run for run in runs if run.seed == 42])
    assert "±" not in html
    assert any("may be chance" in text for text in outline.texts)


def test_each_task_has_its_own_table_and_picture(page, runs):
    others = [Run(run.method, run.seed, "cola", run.metrics | {"novelty": 1.0}, 1.0, 1.0, 1) for run in runs]
    html, outline = page(runs=[*runs, *others])
    assert outline.headings.count("cola") == 2
    assert "Learned against lost: cola" in outline.headings
    assert outline.tags.count("svg") == 3
    assert outline.tags.count("table") == 4
    ids = re.findall(r' id="([^"]*)"', html)
    assert len(ids) == len(set(ids))
