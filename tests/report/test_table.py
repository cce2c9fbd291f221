import io
import math

import pytest
from rich.console import Console

from balora.report import PRETRAINED, Run, markdown_table, rich_table, summarize
from balora.report.glossary import format_value, with_arrow


@pytest.mark.parametrize(
    ("metric", "value", "sd", "text"),
    [
        ("accuracy", 0.84567, None, "0.846"),
        ("accuracy", 0.84567, 0.0104, "0.846 ± 0.010"),
        ("perplexity", 12345.678, 1.5, "12,345.68 ± 1.50"),
        ("kl_to_base", 0.00123, 0.00034, "0.0012 ± 0.0003"),
        ("kl_to_base", 0.0, None, "0.000"),
        ("matthews", -0.25, None, "-0.250"),
        ("accuracy", math.nan, None, "–"),
    ],
)
def test_numbers_are_formatted_by_metric(metric, value, sd, text):
    assert format_value(metric, value, sd) == text


def test_arrows_only_where_a_direction_is_known():
    assert [with_arrow(name) for name in ("f1", "skew", "novelty")] == ["f1 ↑", "skew ↓", "novelty"]


def test_markdown_is_a_regular_table_with_a_legend(runs):
    table, legend = markdown_table(summarize(runs)[0]).split("\n\n")
    lines = table.splitlines()
    assert len(lines) == 2 + 4
    assert {line.count("|") for line in lines} == {9}
    assert lines[0].startswith("| method | seeds | accuracy ↑ | kl_to_base ↓ | perplexity ↓ | time (s) |")
    assert lines[2] == "| pretrained | – | 0.684 | 0.000 | 10.90 | – | 640 | – |"
    assert lines[5] == (
        "| balora | 2 | **0.855 ± 0.010** ≈ | **0.210 ± 0.042** | **11.45 ± 0.21** | 14.3 | 1,892 | 1,234,567 |"
    )
    assert "**Bold** marks the best" in legend
    assert "≈ best mean, but its mean ± sd overlaps another" in legend


def test_markdown_survives_pipes_and_tags_in_names():
    table = markdown_table(summarize([Run("a|b <i>", 1, "t", {"f1": 0.5}, 1.0, 2.0, 3)])[0])
    assert r"| a\|b &lt;i> |" in table


def test_missing_runs_are_noted_in_the_cell():
    made = [Run("lora", seed, "t", {"f1": value}, 1.0, 2.0, 3) for seed, value in ((1, 0.5), (2, math.nan))]
    made.append(Run("pissa", 1, "t", {"accuracy": 0.5}, 1.0, 2.0, 3))
    lines = markdown_table(summarize(made)[0]).splitlines()
    assert lines[2].startswith("| lora | 2 | 0.500 (1 of 2) | – |")
    assert lines[3].startswith("| pissa | 1 | – | 0.500 |")


def test_terminal_table_fits_eighty_columns_and_leaves_markup_alone(runs):
    runs.append(Run("[bold]x[/bold]", 42, "mrpc", {"accuracy": 0.1}, 1.0, 2.0, 3))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rich_table(summarize(runs)[0]))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert PRETRAINED in text
    assert "1,234,567" in text
    assert "[bold]" in text
    assert "≈" in text
