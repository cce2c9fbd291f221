"""Valid recipes, from which bad ones are made, and all checks of a recipe that load no model."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from balora.recipe import Recipe
from balora.recipe.parse import parse
from balora.study.output_dir import named_folder
from balora.study.plan import plan, single

WORKS = {"model_name_or_path": "m", "train_file": "a.jsonl"}
MEASURED = {**WORKS, "validation_file": "b.jsonl"}
RECIPES: list[dict[str, Any]] = [
    {**WORKS, "methods": ["lora", "ba-lora"], "seeds": [1, 2], "r": 4, "learning_rate": 0.01, "output_dir": "out"},
    {**MEASURED, "label_column": "label", "class_ratio": [2, 1], "time_frequency": "daily", "geometry": True},
    {"world": {"facts": 8, "task_items": 6}, "worlds": {"pronoun_skew": [0.5, 0.9]}, "r": 2},
    {**WORKS, "sweep": {"r": [1, 2], "learning_rate": [0.1, 0.2]}, "method_settings": {"lora": {"r": 2}}},
    {"tasks": {"one": WORKS, "two": {**WORKS, "r": 8}}, "methods": ["mine"],
     "method_settings": {"mine": {"method": "lora"}}},
    {**WORKS, "auxiliary": {"train_file": "b.jsonl"}, "mixture_ratio": [9, 1],
     "training_arguments": {"use_cpu": True}},
    {**MEASURED, "qa_format": "squad", "max_length": 64, "perturbation_kinds": ["synonym"],
     "task_type": "SEQ_2_SEQ_LM"},
    {**WORKS, "streaming": True, "max_steps": 5, "quantization_config": {"bnb_4bit_quant_type": "nf4"},
     "method": "qlora", "methods": ["qlora"]},
    {**MEASURED, "oasst": {"languages": ["en"]}, "benchmarks": {"gsm8k": {"file": "a"}}, "noise_kinds": ["token"]},
]  # fmt: skip
NAMES = [f.name for f in fields(Recipe)]


def planned(path: Path) -> None:
    recipe, _ = parse("train", [str(path)])
    recipe.to_yaml()
    plan(recipe)
    if not recipe.tasks:
        single(recipe)
    if recipe.output_dir:
        named_folder(recipe)
