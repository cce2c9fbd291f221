"""Untrusted templates and texts: chat templates run in a sandbox, pages escape markup."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from bad_inputs import complaint
from matplotlib.figure import Figure as Drawing
from tiny_folder import tiny

from balora.audit.metrics import Estimate, Metric
from balora.audit.page import write_audit_page
from balora.audit.settings import AuditSettings
from balora.cli import main
from balora.recipe import Recipe
from balora.report import Run, write_markdown, write_page
from balora.study.prepare import prepare
from balora.study.terminal import one_line


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny(folder)
    return folder


def chat(model: Path, tmp_path: Path, template: str) -> Recipe:
    """Write a recipe with two conversations and this chat template."""
    turns = [{"role": "user", "content": "who sat ?"}, {"role": "assistant", "content": "the cat"}]
    (tmp_path / "rows.jsonl").write_text(2 * (json.dumps({"messages": turns}) + "\n"))
    (tmp_path / "chat.jinja").write_text(template)
    return Recipe(
        model_name_or_path=str(model), train_file=str(tmp_path / "rows.jsonl"),
        chat_template_path=str(tmp_path / "chat.jinja"), training_arguments={"use_cpu": True},
    )  # fmt: skip


ESCAPES = {
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch RAN') }}",
    "attr": "{{ (messages | attr('__class__')).__mro__ }}",
    "import": "{% import 'os' as os %}{{ os.system('touch RAN') }}",
    "include": "{% include '/etc/passwd' %}",
    "mutation": "{{ messages.append(1) }}",
    "format": "{{ '{0.__class__.__mro__}'.format(messages).x }}",
    "call": "{{ strftime_now.__globals__['__builtins__']['open']('RAN', 'w') }}",
    "range": "{% for i in range(10**9) %}a{% endfor %}",
    "syntax": "{% for %}",
    "undefined": "{{ messages[0].nothing.more }}",
    "raise": "{{ raise_exception('no such roles') }}",
    "zero": "{{ 1 // 0 }}",
}


@pytest.mark.parametrize("kind", ESCAPES)
def test_a_template_that_tries_to_escape_is_one_clear_error(kind, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    recipe = chat(model, tmp_path, ESCAPES[kind])
    assert complaint(lambda: prepare(recipe), "chat template")
    assert {path.name for path in tmp_path.iterdir()} - {path.name for path in before} == {"rows.jsonl", "chat.jinja"}


def test_a_valid_template_is_rendered(model, tmp_path):
    template = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"
    prepared = prepare(chat(model, tmp_path, template))
    assert prepared.tokenizer.apply_chat_template(prepared.train[0]["messages"], tokenize=False).startswith("user :")


EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "</style><script>alert(1)</script>",
    "<!-- <svg onload=alert(1)>",
    "]]><iframe src=javascript:alert(1)>",
    "&lt;script&gt;",
    "$\\frac{1}{0}$",
    "[a](javascript:alert(1))",
]


class Outline(HTMLParser):
    """Parser that collects a page's elements, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def harmless(path: Path, shown: str) -> None:
    """Assert that a page has no active element or attribute and shows a text unchanged."""
    page = Outline(path.read_text(encoding="utf-8"))
    assert not page.tags & {"script", "img", "iframe", "object", "embed", "link", "base", "form", "foreignobject"}
    assert not [name for name in page.attributes if name.startswith("on")]
    assert all(link.startswith("#") for link in page.links)
    assert shown in page.text
    if "7 * 7" in shown:  # a template that ran would have shown its value
        assert "49" not in page.text


@pytest.mark.parametrize("evil", EVIL)
def test_a_report_escapes_names_and_texts(evil, tmp_path):
    runs = [
        Run(method, seed, task, {"accuracy": 0.5 + seed / 7, "perplexity": 3.0 + seed, evil: 1.0}, 1.0, 1.0, 1)
        for method in (evil, "lora") for seed in (1, 2) for task in (evil, "t")
    ]  # fmt: skip
    histories = {run.id: [{"loss": 1.0, "step": 1}, {"loss": 0.5, f"loss_{evil}": 2.0, "step": 2}] for run in runs}
    shown = {"runs": runs, "task_metric": "accuracy", "drift_metric": evil}
    figures = [(evil, evil, Drawing())]
    page = tmp_path / "report.html"
    write_page(page, title=evil, histories=histories, recipe_text=evil, notes=[evil], figures=figures, **shown)
    harmless(page, evil)
    write_markdown(tmp_path / "summary.md", figures=figures, **shown)
    assert {path.parent for path in tmp_path.rglob("*")} == {tmp_path}


@pytest.mark.parametrize("evil", EVIL)
def test_an_audit_escapes_names_and_texts(evil, tmp_path):
    settings = AuditSettings(model=f"m/{evil}", adapter=evil, output_dir=evil, data_file=evil, text_column=evil)
    estimate = Estimate(1.5, 1.0, 2.0)
    figures = [
        Metric(name, evil, tuned=estimate, base=estimate, change=Estimate(0.5, 0.1, 0.9), units=3, unit=evil)
        for name in ("perplexity", "entropy")
    ]
    page = tmp_path / "audit.html"
    write_audit_page(page, settings=settings, kind="causal language model", metrics=figures, notes=[evil])
    harmless(page, evil)


def test_errors_print_no_terminal_control_characters(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"\x1b]0;owned\x07\x1b[2J\nbalora: error: other": "a"}) + "\n")
    named = tmp_path / "no\x1b[2J.jsonl"
    recipe = ["--model_name_or_path=m", f"--train_file={named}", f"--output_dir={tmp_path / 'o'}"]
    assert main(["train", *recipe]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert said.count("balora: error:") == 1
    assert one_line("a\n b\x1b[2J\u202e\ud800") == "a b\N{REPLACEMENT CHARACTER}[2J" + 2 * "\N{REPLACEMENT CHARACTER}"
