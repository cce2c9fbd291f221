"""Changed run folders, results and audits: read, or refused by one clear error."""

import json
from pathlib import Path

from bad_inputs import complaint, hold, mutated, mutated_bytes, sized
from hypothesis import strategies as st

from balora.audit.run import _check_folder, _read
from balora.report import Run, read_results, write_markdown, write_page, write_results
from balora.study.run import HISTORY_FILE, RESULT_FILE, read_history, read_result

RUN = Run("lora", 1, "t", {"accuracy": 0.5, "perplexity": 3.0}, 1.0, 10.0, 100)
HISTORY = [{"loss": 1.5, "step": 1, "epoch": 0.5}, {"loss": 1.0, "step": 2}, {"train_runtime": 1.0, "step": 2}]


@st.composite
def changed(draw: st.DrawFn, right: bytes) -> bytes:
    if draw(st.booleans()):
        return json.dumps(mutated(json.loads(right), draw)).encode()
    return mutated_bytes(right, draw)


@sized(few=60, share=0.03)
def test_changed_results_are_read_or_refused(count, tmp_path):
    path = tmp_path / "results.json"
    write_results(path, [RUN, Run("ba-lora", 1, "t", {"accuracy": 0.7}, 1.0, 10.0, 100)])
    right = path.read_bytes()

    def check(content: bytes) -> str:
        path.write_bytes(content)
        return "read" if complaint(lambda: read_results(path), path) is None else "refused"

    tally = hold(count, changed(right), check)
    assert 0 < tally["read"] < tally.total()


@sized(few=60, share=0.04)
def test_a_changed_result_of_a_run_is_read_or_refused(count, tmp_path):
    path = tmp_path / RESULT_FILE

    def check(content: bytes) -> str:
        path.write_bytes(content)
        return "read" if complaint(lambda: read_result(tmp_path), path) is None else "refused"

    tally = hold(count, changed(json.dumps(vars(RUN)).encode()), check)
    assert 0 < tally["read"] < tally.total()


@sized(few=15, share=0.005)
def test_a_changed_result_that_is_read_is_drawn(count, tmp_path):
    folder, page = tmp_path / "run", tmp_path / "page.html"
    folder.mkdir()
    (folder / HISTORY_FILE).write_text(json.dumps(HISTORY))

    def check(content: bytes) -> str:
        (folder / RESULT_FILE).write_bytes(content)

        def draw_it() -> None:
            run = read_result(folder)
            shown = {"runs": [run, RUN], "task_metric": "accuracy", "drift_metric": "perplexity"}
            write_page(page, title="a", histories={run.id: read_history(folder)}, recipe_text="", **shown)
            write_markdown(tmp_path / "page.md", **shown)

        return "drawn" if complaint(draw_it, folder, "baseline", "task") is None else "refused"

    assert hold(count, changed(json.dumps({**vars(RUN), "method": "ba-lora"}).encode()), check)["drawn"] > 0


@sized(few=60, share=0.02)
def test_a_changed_part_of_an_audit_is_read_or_refused(count, tmp_path):
    estimate = {"value": 1.0, "low": 0.5, "high": 1.5}
    figure = {"name": "perplexity", "on": "texts", "base": estimate, "tuned": estimate, "change": estimate}
    identity = {"model": "m", "adapter": None, "dtype": "auto"}
    part = {"identity": identity, "settings": {"seed": 0, "files": []}, "notes": [], "units": 1}
    part["figures"] = [{**figure, "units": 3, "unit": "texts"}]
    path: Path = tmp_path / "parts" / "texts.json"
    path.parent.mkdir()

    def check(content: bytes) -> str:
        path.write_bytes(content)
        said = complaint(lambda: _check_folder(tmp_path, identity), path, tmp_path)
        if said is None:
            complaint(lambda: _read(path), path)
        return "read" if said is None else "refused"

    tally = hold(count, changed(json.dumps(part).encode()), check)
    assert 0 < tally["read"] < tally.total()
