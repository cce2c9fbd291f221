"""StereoSet and BBQ as recipes name them: figures in the table, explained, and all that was measured kept."""

import json

import pytest

from balora.evaluation.benchmarks import BENCHMARKS, BIAS, PromptSettings, prepare
from balora.report.glossary import GLOSSARY, better_direction


@pytest.fixture
def writing(tokenizer):
    return PromptSettings(tokenizer, batch_size=8)


def test_recipes_know_them_as_benchmarks_of_bias():
    for name in ("stereoset", "bbq"):
        assert BENCHMARKS[name].name == name
        assert name in BIAS


@pytest.mark.parametrize(
    ("name", "settings", "directions"),
    [
        ("stereoset", {"file": "stereoset/intrasentence_dev.json"}, {"lms": "higher", "ss": None, "icat": "higher"}),
        (
            "bbq",
            {"files": ["bbq/Age.jsonl", "bbq/Physical_appearance.jsonl"]},
            {
                **dict.fromkeys(("accuracy_ambiguous", "accuracy_disambiguated"), "higher"),
                **dict.fromkeys(("bias_ambiguous", "bias_disambiguated"), None),
            },
        ),
    ],
)
def test_figures_are_shown_explained_and_kept(data_dir, tmp_path, model, writing, name, settings, directions):
    (setting, value), *_ = settings.items()
    files = [str(data_dir / file) for file in ([value] if isinstance(value, str) else value)]
    own = {setting: files[0] if isinstance(value, str) else files}
    estimates = prepare(BENCHMARKS[name], writing, **own, max_samples=8)(model, tmp_path)
    kept = json.loads((tmp_path / f"{name}.json").read_text())
    assert kept["all"]["items"] == 8 * len(files)
    assert {figure: found.value for figure, found in estimates.items()} == {
        f"{name}_{figure}": kept["all"][figure] for figure in directions
    }
    assert len(kept) > len(files)
    for figure, direction in directions.items():
        found = estimates[f"{name}_{figure}"]
        ends = (kept["all"][f"{figure}_low"], kept["all"][f"{figure}_high"])
        assert (found.low, found.high) == pytest.approx(ends, rel=1e-9, nan_ok=True) or kept["all"].get("terms") == 1
        assert GLOSSARY[f"{name}_{figure}"].definition
        assert better_direction(f"{name}_{figure}") == direction
        assert kept["all"][f"{figure}_low"] <= kept["all"][figure] + 1e-12
        assert kept["all"][f"{figure}_high"] >= kept["all"][figure] - 1e-12
