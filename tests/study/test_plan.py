"""What a recipe's study consists of: settings over one another, and cells in a fair order."""

from dataclasses import replace

import pytest
import yaml

from balora import BALoraConfig
from balora.cli import main
from balora.config.published import PRESETS
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.recipe.parse import parse
from balora.study.method_config import balora_config
from balora.study.plan import plan, single

STUDY = {
    "model_name_or_path": "some/model",
    "tasks": {"cola": {"glue_task": "cola", "num_train_epochs": 5}, "own": {"train_file": "a.jsonl"}},
    "methods": ["lora", "full", "spectral only"],
    "seeds": [1, 2],
    "learning_rate": 1e-3,
    "method_settings": {
        "full": {"learning_rate": 1e-4, "num_train_epochs": 2},
        "spectral only": {"method": "ba-lora", "consistency_weight": 0.0},
    },
}


def test_every_seed_has_every_task_and_method():
    cells = plan(Recipe(**STUDY))
    assert [(c.recipe.name, c.label, c.seed) for c in cells[:2]] == [
        ("cola", "pretrained", 1),
        ("own", "pretrained", 1),
    ]
    order = [(c.seed, c.recipe.name, c.label) for c in cells[2:]]
    methods = ["lora", "full", "spectral only"]
    assert order == [(seed, task, method) for seed in (1, 2) for task in ("cola", "own") for method in methods]
    assert len({cell.folder for cell in cells}) == len(cells)


def test_the_methods_settings_stand_over_the_tasks_and_those_over_the_studys():
    cells = {(c.recipe.name, c.label): c.recipe for c in plan(Recipe(**STUDY))}
    assert cells["cola", "lora"].num_train_epochs == 5
    assert cells["own", "lora"].num_train_epochs == 1
    assert cells["own", "lora"].learning_rate == 1e-3
    full = cells["cola", "full"]
    assert (full.method, full.learning_rate, full.num_train_epochs) == ("full", 1e-4, 2)
    spectral = cells["cola", "spectral only"]
    assert (spectral.method, spectral.consistency_weight, spectral.diversity_weight) == ("ba-lora", 0.0, None)
    assert cells["cola", "pretrained"].is_classification
    assert not cells["own", "lora"].is_classification


def test_a_preset_is_a_method_by_its_name_and_can_be_varied():
    study = {"model_name_or_path": "some/model", "train_file": "a.jsonl", "methods": ["structural", "reverse KL"]}
    study["method_settings"] = {"reverse KL": {"method": "structural", "bias_path_weight": 0.0}}
    plain = BALoraConfig(**PRESETS["structural"])
    cells = plan(Recipe(**study))[1:]
    for cell, weight in zip(cells, (10.0, 0.0), strict=True):
        config = balora_config(cell.recipe, cell.seed)
        assert (cell.recipe.method, config.method, config.bias_path_weight) == ("lora+reg", "lora+reg", weight)
        same = {name: value for name, value in plain.settings().items() if name in PRESETS["structural"]}
        assert {**{name: config.settings()[name] for name in same}, "bias_path_weight": 10.0} == same
    assert single(Recipe(**{**study, "method": "structural"})) == replace(cells[0].recipe, methods=study["methods"])
    swept = plan(Recipe(**study, sweep={"r": [1, 2]}))[1:]
    assert {cell.recipe.method for cell in swept} == {"lora+reg"}
    assert {cell.recipe.consistency_direction for cell in swept} == {"reverse"}


def test_a_study_of_one_task_has_plain_folders():
    cells = plan(Recipe(model_name_or_path="m", train_file="a.jsonl", methods=["lora"], seeds=[3]))
    assert [str(cell.folder) for cell in cells] == ["runs/pretrained-seed3", "runs/lora-seed3"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": {"cola": {"glue_tsk": "cola"}}}, "tasks: cola: unknown key 'glue_tsk'; did you mean 'glue_task'?"),
        ({"tasks": {"cola": {"seeds": [1]}}}, "tasks: cola: 'seeds' is a setting of the whole study"),
        (
            {"method_settings": {"full": {"lerning_rate": 1}}, "methods": ["full"]},
            "method_settings: full: unknown key 'lerning_rate'",
        ),
        ({"method_settings": {"spectral only": {"spectral_weight": 1}}}, "methods: unknown method 'spectral only'"),
        ({"tasks": {"cola": {"glue_task": "kola"}}}, "glue_task: unknown 'kola'; there are cola, sst2"),
        ({"tasks": {"cola": {}}}, "train_file, dataset_name: one of the two is missing"),
        ({"tasks": {"../cola": {}}}, "tasks: '../cola' names a folder too, so it"),
        ({"jobs": 0}, "jobs: 0 is out of range; use at least 1"),
        ({"methods": ["spectral only"], "method_settings": {"spectral only": {"method": "x"}}}, "unknown method 'x'"),
    ],
)
def test_a_mistake_in_a_task_or_method_is_named(change, message):
    with pytest.raises(BALoraError, match=message.replace("?", r"\?")):
        plan(Recipe(**{**STUDY, **change}))


def test_values_are_typed_inside_tasks_and_methods_too(tmp_path, capsys):
    # YAML itself reads 1e-4 as text.
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "method_settings": {}, "methods": ["full"]}) + "tasks: {a: {r: 1}}\n")
    typed, _ = parse("compare", [str(path), "--method_settings", "{full: {learning_rate: 1e-4}}"])
    assert typed.method_settings == {"full": {"learning_rate": 1e-4}}
    assert main(["compare", str(path), "--method_settings", "{full: {learning_rate: high}}"]) == 2
    error = capsys.readouterr().err
    assert "method_settings: full: " in error
    assert "learning_rate" in error


def test_train_takes_one_task(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(STUDY))
    assert main(["train", str(tmp_path / "r.yaml"), "--output_dir", str(tmp_path / "out")]) == 2
    assert "task: None is not among the recipe's tasks; name one of cola, own" in capsys.readouterr().err


def test_the_one_task_has_its_methods_settings_too():
    one = single(Recipe(**STUDY, task="cola", method="full"))
    assert (one.name, one.learning_rate, one.tasks) == ("cola", 1e-4, {})


def test_a_sweep_trains_every_method_at_every_combination():
    one = {"model_name_or_path": "m", "train_file": "a.jsonl", "methods": ["lora", "ba-lora"], "seeds": [3, 4]}
    sweep = {"r": [1, 8], "learning_rate": [0.1, 0.2]}
    cells = plan(Recipe(**one, sweep=sweep, method_settings={"lora": {"lora_alpha": 5}}, baseline="ba-lora"))
    assert len(cells) == 1 + 2 * 2 * 2 * 2
    first, *_, last = cells[1:]
    assert (first.label, last.label) == ("lora r=1 learning_rate=0.1", "ba-lora r=8 learning_rate=0.2")
    assert (first.recipe.method, first.recipe.r, first.recipe.learning_rate, first.recipe.lora_alpha) == (
        "lora",
        1,
        0.1,
        5,
    )
    assert (last.recipe.method, last.recipe.r, last.seed) == ("ba-lora", 8, 4)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"rank": [1]}, "sweep: unknown key 'rank'"),
        ({"seeds": [[1]]}, "sweep: 'seeds' is a setting of the whole study"),
        ({"r": []}, "sweep: r: \\[\\] must have at least one value"),
        ({"r": [1, 1]}, "sweep: r: \\[1, 1\\] must have at least one value, and none twice"),
    ],
)
def test_a_wrong_sweep_is_named(sweep, message):
    with pytest.raises(BALoraError, match=message):
        Recipe(model_name_or_path="m", train_file="a.jsonl", sweep=sweep)


def test_swept_values_are_typed(tmp_path, capsys):
    path = tmp_path / "r.yaml"
    path.write_text("model_name_or_path: m\ntrain_file: a.jsonl\nsweep: {learning_rate: [1e-4, 2e-4]}\n")
    assert parse("sweep", [str(path)])[0].sweep == {"learning_rate": [1e-4, 2e-4]}
    assert main(["sweep", str(path), "--sweep", "{r: [1, many]}"]) == 2
    assert "sweep: r: " in capsys.readouterr().err
    assert main(["sweep", str(path), "--sweep", "{}"]) == 2
    assert "sweep: missing" in capsys.readouterr().err


def test_texts_inside_tasks_and_methods_are_read_as_they_stand(tmp_path):
    """A template with a colon is no mapping, and a column of digits no number."""
    own = {"prompt_template": "Question: {prompt}\nAnswer:", "prompt_column": "12"}
    groups = {"tasks": {"one": own}, "method_settings": {"lora": own}, "auxiliary": own}
    base = {"model_name_or_path": "m", "train_file": "f", "sweep": {name: [value] for name, value in own.items()}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**base, **groups}))
    recipe, _ = parse("compare", [str(tmp_path / "recipe.yaml")])
    assert recipe.tasks["one"] == recipe.method_settings["lora"] == recipe.auxiliary == own
    assert recipe.sweep == {name: [value] for name, value in own.items()}
    arguments = ["--auxiliary", '{prompt_template: "Q: {prompt}"}', "--training_arguments.use_cpu", "true"]
    recipe, _ = parse("compare", [str(tmp_path / "recipe.yaml"), *arguments])
    assert recipe.auxiliary == {"prompt_template": "Q: {prompt}"}
    assert recipe.training_arguments == {"use_cpu": True}
