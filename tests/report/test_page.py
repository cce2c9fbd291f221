import math
import re
from html.parser import HTMLParser
from importlib.metadata import version

import pytest
from matplotlib.figure import Figure

from balora.errors import BALoraError
from balora.report import PRETRAINED, Run, write_markdown, write_page
from balora.report.verdicts import comparisons

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


def test_page_has_no_external_resources(page):
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


def test_a_suite_of_evil_names_is_escaped(page):
    evil = "<script>alert('x')</script>"
    made = [
        Run(method, seed, task, {evil: 0.1 * seed, "kl_to_base": 0.1}, 1.0, 1.0, 1)
        for task in (evil, "cola")
        for method in ("lora", evil)
        for seed in (1, 2)
    ]
    html, outline = page(runs=made, histories={}, task_metric={evil: evil, "cola": evil})
    assert "<script" not in html
    assert "script" not in outline.tags
    assert outline.tags.count("svg") == 3
    assert any(text.startswith(f"{evil} against lora: the difference in mean {evil}") for text in outline.texts)


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


def test_page_of_several_tasks_begins_with_the_suite(page, suite, metric_of):
    logs = {run.id: [{"step": step, "loss": 1 / step} for step in (1, 2, 3)] for run in suite}
    html, outline = page(runs=suite, task_metric=metric_of, histories=logs)
    section = ["Learned against lost", "Training"]
    assert outline.headings == [
        *("Paraphrases", "All tasks", "cola", *section, "stsb", *section, "rte", *section),
        *("What the metrics mean", "Every run", "cola", "stsb", "rte", "Recipe"),
    ]
    assert outline.tags.count("svg") == 1 + 2 * 3
    assert outline.tags.count("table") == 1 + 3 + 3
    sentences = comparisons(suite, metric_of, "lora")
    assert [outline.texts.count(sentence) for sentence in sentences] == [1, 1]
    assert all(outline.texts.index(sentence) < outline.texts.index("All tasks") for sentence in sentences)
    for task, metric in metric_of.items():
        assert any(text.startswith(f"On {task}, balora does best on the task by {metric} (") for text in outline.texts)
        assert any(text.startswith(f"{metric} against kl_to_base.") for text in outline.texts)
    ids = re.findall(r' id="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert [value for name, value in outline.attributes if name == "href" and "task" in value] == [
        "#task-1",
        "#task-2",
        "#task-3",
    ]
    assert {"task-1", "task-2", "task-3"} <= set(ids)


def test_one_task_with_seeds_has_its_paired_sentences_below_the_headline(page, runs):
    _, outline = page()
    found = [index for index, text in enumerate(outline.texts) if text in comparisons(runs, "accuracy", "lora")]
    assert len(found) == 2
    assert outline.texts[found[0] - 1].startswith("On mrpc, balora does best")
    _, outline = page(baseline="balora")
    assert sum("balora" in text and "pair" in text for text in outline.texts) == 2


def test_a_method_keeps_its_colour_in_every_task(page, suite, metric_of):
    some = [run for run in suite if (run.task, run.method) != ("cola", "lora")]
    html, _ = page(runs=some, task_metric=metric_of, baseline="balora", histories={})
    pictures = html.split('<figure class="tradeoff">')[1:]
    blue = "#0072b2"  # the first colour, which is that of the study's first method and not of the task's
    first = next(run.method for run in some)
    assert first == "pissa"
    assert [blue in picture.split("</figure>")[0] for picture in pictures] == [True, True, True]
    without = [run for run in some if (run.task, run.method) != ("rte", "pissa")]
    html, _ = page(runs=without, task_metric=metric_of, baseline="balora", histories={})
    assert blue not in html.split('<figure class="tradeoff">')[3].split("</figure>")[0]


def test_further_figures_have_their_own_sections(page, tmp_path, runs):
    def draw():
        figure = Figure(figsize=(2, 2))
        figure.add_subplot().scatter([1, 2], [3, 4])
        return figure

    figures = [(heading, f"About {heading}.", draw()) for heading in ("Features <i>", "Tradeoff", "tradeoff!", "特徴")]
    html, outline = page(figures=figures)
    assert outline.headings[4:8] == [heading for heading, *_ in figures]
    assert outline.tags.count("svg") == 2 + 4
    assert "i" not in outline.tags
    ids = re.findall(r' id="([^"]*)"', html)
    assert len(ids) == len(set(ids))

    path = tmp_path / "new" / "summary.md"
    write_markdown(path, runs=runs, task_metric="accuracy", drift_metric="kl_to_base", figures=figures)
    text = path.read_text(encoding="utf-8")
    names = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
    assert names == ["tradeoff.png", "features-i.png", "tradeoff-2.png", "tradeoff-3.png", "figure.png"]
    assert sorted(file.name for file in path.parent.glob("*.png")) == sorted(names)
    assert "About Tradeoff." in text


def test_markdown_of_several_tasks_begins_with_the_suite(tmp_path, suite, metric_of):
    path = tmp_path / "summary.md"
    write_markdown(path, runs=suite, task_metric=metric_of, drift_metric="kl_to_base")
    text = path.read_text(encoding="utf-8")
    order = [
        *(f"- {sentence}" for sentence in comparisons(suite, metric_of, "lora")),
        "| method | cola (matthews ↑) |",
        "(suite.png)",
        *("## cola", "On cola, balora does best on the task by matthews", "(tradeoff.png)"),
        *("## stsb", "On stsb, balora does best on the task by pearson", "(tradeoff-2.png)"),
        *("## rte", "On rte, balora does best on the task by accuracy", "(tradeoff-3.png)"),
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert (tmp_path / "suite.png").read_bytes().startswith(b"\x89PNG")


def test_settings_that_do_not_fit_the_runs_are_refused(page, runs):
    with pytest.raises(BALoraError, match="task_metric: no metric for task 'mrpc'"):
        page(task_metric={"cola": "matthews"})
    with pytest.raises(BALoraError, match=r"baseline: .* is not a fine-tuned method"):
        page(baseline="dora")
