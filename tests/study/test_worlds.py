"""Worlds that differ in one knob each: planned as tasks, run from end to end, drawn against the pretrained models."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from balora.cli import main
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.report import PRETRAINED, Run, read_results
from balora.study.plan import plan, single
from balora.study.prepare import prepare
from balora.study.worlds import world_figures
from balora.world import WorldConfig

SMALL = {
    **{"facts": 8, "objects": 8, "occupations": 4, "train_rows": 40, "eval_rows": 20},
    **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"pretrain_steps": 4, "pretrain_batch_size": 4},
}
WORLDS = {"pronoun_skew": [0.5, 0.9], "pretraining_imbalance": [16]}


@pytest.fixture
def settings(tmp_path, monkeypatch) -> dict:
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path / "cache"))
    return {
        "name": "small",
        "methods": ["lora"],
        "seeds": [1, 2],
        "world": SMALL,
        "worlds": WORLDS,
        "output_dir": str(tmp_path / "out"),
        "r": 2,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "task_metric": "task_accuracy",
        "training_arguments": {"use_cpu": True},
    }


def program(tmp_path: Path, command: str, settings: dict, *arguments: str) -> int:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return main([command, str(tmp_path / "recipe.yaml"), *arguments])


def test_each_world_is_a_task_and_differs_in_one_knob():
    recipe = Recipe(world=WorldConfig(**SMALL), worlds=WORLDS, methods=["lora", "pissa"], seeds=[1, 2])
    cells = plan(recipe)
    names = ["base", "pronoun_skew=0.5", "pretraining_imbalance=16"]  # the base has a skew of 0.9 already
    assert [cell.recipe.name for cell in cells[:3]] == names
    assert {cell.label for cell in cells[:3]} == {PRETRAINED}
    assert len(cells) == 3 * (1 + 2 * 2)
    assert str(cells[1].folder) == "runs/pronoun_skew=0.5/pretrained-seed1"
    worlds = {cell.recipe.name: cell.recipe.world for cell in cells}
    assert worlds["base"] == WorldConfig(**SMALL)
    assert worlds["pronoun_skew=0.5"] == WorldConfig(**SMALL, pronoun_skew=0.5)
    assert worlds["pretraining_imbalance=16"] == WorldConfig(**SMALL, pretraining_imbalance=16)
    assert single(Recipe(**{**vars(recipe), "task": "pronoun_skew=0.5"})).world.pronoun_skew == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"worlds": {"skew": [1]}}, "worlds: unknown key 'skew'"),
        ({"worlds": {"pronoun_skew": []}}, r"worlds: pronoun_skew: \[\] must have at least one value"),
        ({"worlds": {"pronoun_skew": [2.0]}}, r"worlds: pronoun_skew must be a number from 0 to 1, not 2\.0"),
        ({"world": None, "model_name_or_path": "m", "train_file": "f"}, "worlds: they are variants of `world`"),
        ({"tasks": {"a": {}}}, "worlds: they are variants of `world`, each a task; give `world: {}`, and no tasks"),
        ({"method_settings": {"lora": {"worlds": {}}}}, "'worlds' is a setting of the whole study"),
    ],
)
def test_wrong_worlds_are_named(change, message):
    with pytest.raises(BALoraError, match=message):
        plan(Recipe(**({"world": WorldConfig(**SMALL), "worlds": WORLDS} | change)))


@pytest.mark.slow
def test_a_sweep_of_worlds_from_recipe_to_figure(settings, tmp_path, capsys):
    settings |= {"seeds": [1], "worlds": {"pretraining_imbalance": [16]}}
    assert program(tmp_path, "sweep", settings) == 0
    out = tmp_path / "out"
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert len(stamps) == 4
    # Again, with another axis: that alone is run. A knob that the folder does not know had its default.
    record = yaml.safe_load((out / "recipe.yaml").read_text())
    del record["world"]["pretraining_imbalance"]
    (out / "recipe.yaml").write_text(yaml.safe_dump(record))
    worlds = {"pretraining_imbalance": [16], "pronoun_skew": [0.5]}
    assert program(tmp_path, "sweep", settings | {"worlds": worlds}) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    runs = read_results(out / "results.json")
    tasks = ("base", "pretraining_imbalance=16", "pronoun_skew=0.5")
    assert sorted((run.task, run.method) for run in runs) == [(t, m) for t in tasks for m in ("lora", PRETRAINED)]
    untouched = {run.task: run.metrics for run in runs if run.method == PRETRAINED}
    assert untouched["base"]["skew"] != untouched["pronoun_skew=0.5"]["skew"]
    for name in ("what-is-inherited.png", "task-accuracy-against-perplexity-and-skew.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text()
    assert page.count("pretraining_imbalance") > 3
    assert "what is inherited" in page
    # Fine-tuning's rows and the size of the model are the same everywhere.
    worlds = [path for path in (tmp_path / "cache").glob("world-*") if path.is_dir()]
    assert len(worlds) == 3
    for file, kinds in (("train.jsonl", 1), ("model/config.json", 1), ("model/model.safetensors", 3)):
        assert len({(path / file).read_bytes() for path in worlds}) == kinds, file
    capsys.readouterr()
    assert program(tmp_path, "sweep", settings | {"world": SMALL | {"facts": 9}}) == 2
    assert "differs in world.facts (8 there, 9 now)" in capsys.readouterr().err
    assert program(tmp_path, "sweep", settings | {"worlds": {}}) == 2
    assert "sweep: missing" in capsys.readouterr().err


def test_the_figure_holds_methods_against_the_pretrained_model_of_their_world():
    recipe = Recipe(world=WorldConfig(**SMALL), worlds={"pronoun_skew": [1.0, 0.5]}, methods=["lora"], seeds=[1, 2])
    planted = {"pronoun_skew=0.5": 0.0, "base": 0.4, "pronoun_skew=1.0": 0.5}
    runs = []
    for task, flaw in planted.items():
        metrics = {"skew": flaw, "task_accuracy": 0.0, "perplexity": 2.0}
        runs.append(Run(PRETRAINED, 1, task, metrics, 0.0, 1.0, 0))
        for seed, off in ((1, 0.1), (2, 0.3)):
            metrics = {"skew": flaw / 2 + off, "task_accuracy": 0.9, "perplexity": 3.0}
            runs.append(Run("lora", seed, task, metrics, 1.0, 1.0, 1))
    (_, _, inherited), (heading, _, pareto) = world_figures(recipe, runs, "task_accuracy", "perplexity")
    lora, pretrained = (np.array(line.get_xydata()) for line in inherited.axes[0].get_lines())
    np.testing.assert_allclose(lora, [[0.5, 0.2], [0.9, 0.4], [1.0, 0.45]])
    np.testing.assert_allclose(pretrained, [[0.5, 0.0], [0.9, 0.4], [1.0, 0.5]])
    assert heading == "task_accuracy against perplexity and skew"
    assert [axes.get_xlabel() for axes in pareto.axes] == ["perplexity ↓", "skew ↓"]
    assert world_figures(Recipe(world=WorldConfig()), runs, "task_accuracy", "perplexity") == []


def test_the_pretraining_text_is_replayed_beside_the_task(settings):
    replay = {"auxiliary": {"train_file": "world:pretraining.jsonl"}, "mixture_ratio": [4, 1], "worlds": {}}
    recipe = Recipe(**settings | replay | {"world": WorldConfig(**SMALL), "subset_seed": 3})
    prepared = prepare(recipe)
    lines = Path(prepared.recipe.auxiliary["train_file"]).read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    replayed = [row["completion"] for row in prepared.train if row["prompt"] == ""]
    assert len(replayed) == 10
    assert set(replayed) <= set(texts)
    assert len(prepared.train) - len(replayed) == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"anchor_file": "world:pretrain.jsonl"},
            "anchor_file: world:pretrain.jsonl is not a .* heldout.jsonl, occ",
        ),
        (
            {"world": None, "model_name_or_path": "m", "train_file": "world:train.jsonl"},
            "train_file: world:train.jsonl is a file of the controlled world, which the recipe does not have",
        ),
        ({"auxiliary": {"train_file": "world:x"}}, "auxiliary: train_file: world:x is not a file"),
    ],
)
def test_a_file_of_no_world_is_refused(settings, change, message):
    with pytest.raises(BALoraError, match=message):
        prepare(Recipe(**settings | {"worlds": {}, "world": WorldConfig(**SMALL)} | change))


@pytest.mark.slow
def test_replay_and_averages_train_in_a_study(settings, tmp_path):
    settings |= {
        "worlds": {},
        "seeds": [1],
        "methods": ["lora", "averaged", "replay"],
        "method_settings": {
            "averaged": {"method": "pissa", "wise_ft": 0.5},
            "replay": {"method": "lora", "auxiliary": {"train_file": "world:pretraining.jsonl"}},
        },
    }
    assert program(tmp_path, "compare", settings) == 0
    runs = {run.method: run for run in read_results(tmp_path / "out/results.json")}
    assert runs["averaged"].trainable_parameters == runs["lora"].trainable_parameters
    saved = json.loads((tmp_path / "out/runs/averaged-seed1/adapter_config.json").read_text())
    assert saved["r"] == 4
    assert runs["replay"].metrics["eval_loss"] != runs["lora"].metrics["eval_loss"]


@pytest.mark.parametrize(
    ("method", "share", "message"),
    [
        ("lora", 0.0, r"wise_ft: 0\.0 is out of range"),
        ("dora", 0.5, "wise_ft: method 'dora' cannot be averaged"),
        ("full", 0.5, "wise_ft: only low-rank methods can be averaged, and 'full' is not one"),
    ],
)
def test_what_cannot_be_averaged_is_said_before_training(settings, tmp_path, capsys, method, share, message):
    settings |= {"worlds": {}, "methods": [method], "method_settings": {method: {"wise_ft": share}}}
    assert program(tmp_path, "compare", settings) == 2
    error = capsys.readouterr().err
    assert message.replace("\\", "") in error
    assert not (tmp_path / "out").exists()
