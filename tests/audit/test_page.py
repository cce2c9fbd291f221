"""The audit's page and its table on the terminal: everything explained, escaped, and there without a network."""

import math
import re
from html.parser import HTMLParser
from io import StringIO

import pytest
from rich.console import Console

from balora.audit import AuditSettings, Estimate, Metric
from balora.audit.page import findings, shown, shown_change, shown_interval, write_audit_page
from balora.audit.terminal import audit_table
from balora.audit.verdicts import DRAWN
from balora.evaluation.metric import SECTIONS
from balora.report.glossary import GLOSSARY

#: Entries of the metrics that audits list.
DEFINITIONS = {name: entry for name, entry in GLOSSARY.items() if entry.title}
EVIL = "<script>alert(1)</script>"
VOID = {"meta", "br"}
SETTINGS = AuditSettings("models/base", "adapters/mine", output_dir="out")


class Outline(HTMLParser):
    """Tags, text and headings; fails where tags do not close in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts, self.headings = [], [], [], [], []
        self.feed(html)
        assert self.open == []

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
            if self.open[-1] in ("h1", "h2", "h3"):
                self.headings.append(data.strip())


def estimate(value, width=0.1):
    return Estimate(value, value - width, value + width)


def figure(name, before=1.0, after=1.5, width=0.1, on="texts"):
    return Metric(name, on, estimate(after), estimate(before), estimate(after - before, width), 20, "texts")


def between(name, value=0.5, on="texts", units=20):
    return Metric(name, on, estimate(value), None, None, units, "texts")


def alone(name, value=0.5):
    return between(name, value)


@pytest.fixture
def page(tmp_path):
    def write(figures, settings=SETTINGS, kind="causal language model", notes=()):
        path = tmp_path / "deep" / "audit.html"
        write_audit_page(path, settings=settings, kind=kind, metrics=figures, notes=notes)
        html = path.read_text(encoding="utf-8")
        return html, Outline(html)

    return write


def drawn(value=0.5):
    return [between(name, value * (i + 1), f"layer {i}") for name in DRAWN for i in range(3)]


def test_every_figure_there_is_stands_with_its_definition(page):
    html, outline = page([figure(name, on=f"texts of {name}") for name in DEFINITIONS] + drawn())
    assert outline.headings == [
        "What became of base",
        "For the worse",
        "Neither",
        "For the better",
        *SECTIONS,
        "Settings",
    ]
    assert outline.tags.count("details") == len(DEFINITIONS)
    for definition in DEFINITIONS.values():
        assert (definition.formula or definition.definition) in outline.texts
        assert definition.section in SECTIONS
    assert outline.tags.count("svg") == len(DRAWN)
    assert all(caption in outline.texts for caption in DRAWN.values())
    assert not DEFINITIONS.keys() & DRAWN.keys()
    assert "adapters/mine on models/base, a causal language model." in outline.texts
    assert "max_matrices: 32" in html


def test_a_drawing_of_nothing_is_left_out(page):
    assert "svg" not in page([figure("entropy"), *drawn(0.0)])[1].tags
    assert (
        page([between(name, v, f"layer {i}") for name in DRAWN for i, v in enumerate([math.nan, 1.0])])[1].tags.count(
            "svg"
        )
        == 2
    )


def test_the_page_needs_nothing_from_elsewhere(page):
    html, outline = page([figure(name) for name in DEFINITIONS] + drawn())
    assert not {"script", "link", "img", "iframe"} & set(outline.tags)
    assert "@import" not in html
    references = [value for name, value in outline.attributes if name in ("src", "href", "xlink:href")]
    references += re.findall(r"url\(([^)]*)\)", html)
    assert references
    assert all(reference.startswith("#") for reference in references)
    # The names of XML namespaces, which are never fetched.
    assert set(re.findall(r"https?://[^\"' >]*", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_everything_from_the_user_is_escaped(page):
    settings = AuditSettings(f"models/{EVIL}", f"adapters/{EVIL}", output_dir=EVIL, data_file=EVIL, label_names=[EVIL])
    figures = [figure("perplexity", on=EVIL), *(between(name, 1.0, EVIL) for name in DRAWN)]
    html, outline = page(figures, settings, notes=[EVIL])
    assert "<script" not in html
    assert "script" not in outline.tags
    assert sum(EVIL in text for text in outline.texts) >= 6  # subtitle, note, finding, cell, drawing, settings
    html, outline = page([alone("perplexity")], AuditSettings(EVIL, output_dir="x"))
    assert "<script" not in html
    assert outline.headings[0] == f"Audit of {EVIL}"


def test_what_went_for_the_worse_comes_first():
    figures = [
        figure("perplexity", 3, 2, on="stories"), figure("kl_to_base"), figure("accuracy", 0.9, 0.5),
        figure("entropy", 2, 1), figure("word_perplexity", 20, 25, on="WikiText-2"),
        figure("bias_score", 0.2, 0.3, width=0.2),
        figure("stereoset_ss", 0.5, 0.9, on="StereoSet"), between("top1_agreement"), *drawn(),
    ]  # fmt: skip
    assert findings(figures) == {
        "For the worse": [
            "divergence from the base, on texts, rose from 1.000 to 1.500",
            "accuracy, on texts, fell from 0.900 to 0.500",
            "perplexity per word, on WikiText-2, rose from 20.00 to 25.00",
        ],
        "Neither": [
            "entropy of the output, on texts, fell from 2.000 to 1.000",
            "StereoSet: stereotypes rose from 0.500 to 0.900",
        ],
        "For the better": ["perplexity, on stories, fell from 3.00 to 2.00"],
    }


def test_only_what_is_beyond_the_noise_is_marked(page):
    _, outline = page([figure("bias_score", width=2.0)])
    assert "No figure changed beyond the noise of what it was measured on." in outline.texts
    assert [value for name, value in outline.attributes if name == "class" and value in ("worse", "changed")] == []
    _, outline = page([figure("bias_score"), figure("directed_bias"), figure("accuracy")])
    assert [value for name, value in outline.attributes if name == "class" and value in ("worse", "changed")] == [
        "changed",
        "worse",
        "changed",
    ]


def test_a_model_alone_has_one_column(page):
    html, outline = page([alone("perplexity", 3.25)], AuditSettings("models/base", output_dir="out"))
    assert outline.headings[0] == "Audit of models/base"
    assert "value" in outline.texts
    assert not {"base", "tuned", "change"} & set(outline.texts)
    assert "No figure changed" not in html
    assert {"3.25", "[3.15, 3.35]"} <= set(outline.texts)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1234, "0.123"),
        (-0.1234, "-0.123"),
        (0.0, "0.000"),
        (0.00004, "4e-05"),
        (1234.56, "1,235"),
        (1e7, "10,000,000"),
        (math.nan, "–"),
    ],
)
def test_values_show_no_more_and_no_less_than_they_tell(value, text):
    assert shown("bias_score", value) == text


def test_intervals_and_changes():
    assert shown_interval("perplexity", Estimate(2.0, 1.5, 2.5)) == "[1.50, 2.50]"
    assert shown_interval("perplexity", Estimate(2.0, math.nan, math.nan)) == ""
    assert shown_change(figure("perplexity")) == "+0.50"
    assert shown_change(figure("perplexity", 2, 1)) == "-1.00"
    assert shown_change(between("perplexity")) == ""


class TestTerminal:
    @staticmethod
    def printed(figures):
        console = Console(width=200, file=StringIO(), force_terminal=True)
        console.print(audit_table(figures))
        return console.file.getvalue()

    def test_a_row_for_each_metric_of_a_table(self):
        text = self.printed([figure("perplexity", on="a[b].txt [bold]"), between("kl_to_base"), *drawn()])
        assert "a[b].txt [bold]" in text  # names are no markup
        assert "[0.40, 0.60]" in text
        assert "layer" not in text
        assert text.count("│\n") == 2

    def test_changes_are_bold_where_they_are_beyond_the_noise(self):
        assert "\x1b[1m+0.50" in self.printed([figure("perplexity")])
        assert "\x1b[1m+0.50" not in self.printed([figure("perplexity", width=2)])

    def test_a_model_alone(self):
        text = self.printed([alone("perplexity", 3.25)])
        assert "3.25 [3.15, 3.35]" in text
        assert "change" not in text


def test_a_metric_without_an_entry_is_shown_under_its_name(page):
    _, outline = page([figure("made_up_metric", on="made up")])
    assert {"made_up_metric", "It has no definition.", "made up"} <= set(outline.texts)
    assert findings([figure("made_up_metric", on="made up")]) == {
        "Neither": ["made_up_metric, on made up, rose from 1.000 to 1.500"]
    }


def test_shares_and_gaps_say_what_is_better():
    assert {name for name, d in DEFINITIONS.items() if d.better not in (None, "lower", "higher")} == set()
    assert all((d.formula or d.definition).endswith(".") for d in DEFINITIONS.values())
