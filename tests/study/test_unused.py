"""A setting that no run uses is an error that names it, and what would use it."""

from dataclasses import fields

import pytest

from balora.config import BALoraConfig, Initialization, Regularizers
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.recipe.adapter import Adapter
from balora.recipe.dataset import AnchorTexts
from balora.recipe.methods import BASELINE_METHODS, RUN_METHODS
from balora.study.method_config import balora_config
from balora.study.plan import plan, refuse_settings_of_one_run, single, task_recipes
from balora.study.unused import refuse_unused
from balora.world import WorldConfig

CAUSAL = {"model_name_or_path": "m", "train_file": "a.jsonl"}
CLASSES = CAUSAL | {"label_column": "label"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"method": "lora", "anchor_weight": 0.25},
            "anchor_weight: 0.25 has no effect with method lora: it needs a method with a teacher, such as lora",
        ),
        ({"method": "lora", "consistency_weight": 0.1}, "consistency_weight: .* with regularizers"),
        (
            {"method": "lora", "counterfactual_words": "gender"},
            r"counterfactual_words: .* teacher, such as lora\+anchors\+swaps",
        ),
        ({"method": "lora+reg", "anchor_share": 0.2}, "anchor_share: .*anchor_weight or replay_weight above 0"),
        ({"method": "lora+reg", "anchor_every": 2}, "anchor_every: .*it needs anchor_weight above 0"),
        (
            {"method": "lora+anchors", "anchor_every": 4, "max_steps": 3},
            r"anchor_every: 4 has no effect with method lora\+anchors: it needs at least as many max_steps",
        ),
        ({"method": "lora+reg", "anchor_samples": 9}, "anchor_samples: .*anchor_weight above 0"),
        ({"method": "lora+reg", "pissa_niter": 2}, "pissa_niter: .*it needs method pissa"),
        ({"method": "ba-lora", "corda_method": "kpm"}, "corda_method: .*it needs method corda"),
        ({"method": "ba-lora", "gate_hidden": 9}, "gate_hidden: .*it needs method selora"),
        ({"method": "ba-lora", "semantic_weight": 1.0}, "semantic_weight: .*method selora"),
        ({"method": "ba-lora", "spectral_weight": 0.0, "spectral_k": 3}, "spectral_k: .*spectral_weight above 0"),
        ({"method": "ba-lora", "diversity_weight": 0.0, "top_k": 3}, "top_k: .*diversity_weight above 0"),
        ({"method": "ba-lora", "clip_spectral_k": False}, "clip_spectral_k: .*a classification task"),
        (
            {"method": "lora+reg", "consistency_weight": 0, "teacher_cache_mb": 1},
            "teacher_cache_mb: .*anchor_weight above",
        ),
        ({"method": "ba-lora", "bias_path_radius": 0.2}, "bias_path_radius: .*bias_path_weight above 0"),
        ({"method": "ba-lora", "start_batches": 2}, "start_batches: .*lora-ga, corda, lora-null or ewc"),
        ({"method": "lora", "loraplus_lr_ratio": 4.0}, "loraplus_lr_ratio: .*lora\\+"),
        ({"method": "lora", "quantization_config": {"bnb_4bit_quant_type": "fp4"}}, "quantization_config: .*4 bits"),
        ({"method": "full", "r": 8}, "r: 8 has no effect with method full: it needs another method"),
        ({"method": "adalora", "anchor_weight": 1.0}, "anchor_weight: .*another method"),
        ({"method": "bitfit", "pissa_niter": 1}, "pissa_niter: .*another method"),
        ({"method": "lora", "mixture_ratio": [2, 1]}, "mixture_ratio: .*auxiliary"),
        ({"method": "lora", "max_perplexity_samples": 4}, "max_perplexity_samples: .*perplexity_file"),
        ({"method": "lora", "noise_levels": [0.5]}, "noise_levels: .*noise_kinds"),
        ({"method": "lora", "shuffle_buffer_size": 4}, "shuffle_buffer_size: .*streaming"),
        ({"method": "lora", "max_target_length": 4}, "max_target_length: .*SEQ_2_SEQ_LM"),
        ({"method": "lora", "class_ratio": [1, 2]}, "class_ratio: .*label_column"),
        ({"method": "lora", "train_split": "b"}, "train_split: .*dataset_name"),
        ({"glue_task": "sst2", "glue_dir": "d"}, "glue_dir: .*no train_file or dataset_name"),
        ({"glue_task": "sst2", "label_column": "b"}, "label_column: .*needs text_column too, since"),
        ({"label_column": "b", "prompt_column": "p"}, "prompt_column: .*prompts and completions"),
        ({"oasst": {}, "text_column": "t"}, "text_column: .*no oasst"),
        ({"label_column": "b", "assistant_only_loss": True}, "assistant_only_loss: .*causal language model"),
        ({"label_column": "b", "chat_template_path": "t.jinja"}, "chat_template_path: .*causal language model"),
        ({"subset_seed": 3}, "subset_seed: .*max_train_samples"),
        ({"max_eval_samples": 3}, "max_eval_samples: .*validation_file"),
        ({"max_eval_samples": 3, "validation_share": 0.1}, "max_eval_samples: .*validation_share holds out"),
        ({"label_column": "b", "geometry": True}, "geometry: .*validation_file"),
        ({"noise_kinds": ["token"]}, "noise_kinds: .*validation_file"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 5}, "warmup_steps: .*constant_with_warmup"),
        ({"streaming": True, "max_steps": 1, "mismatched_file": "b"}, "mismatched_file: .*streaming"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_a_setting_without_effect_is_named(settings, message):
    with pytest.raises(BALoraError, match=message):
        refuse_unused([Recipe(**CAUSAL, **settings)])


def test_a_setting_that_one_method_uses_may_stand_for_all():
    recipe = Recipe(**CAUSAL, methods=["lora", "full", "ba-lora"], seeds=[1], consistency_weight=0.2, top_k=3)
    runs = {run.label: run.recipe for run in plan(recipe)}
    assert balora_config(runs["ba-lora"], 0).consistency_weight == 0.2
    plain = balora_config(runs["lora"], 0)
    plain.resolve("CAUSAL_LM")
    assert (plain.consistency_weight, plain.top_k) == (0.0, BALoraConfig().top_k)
    with pytest.raises(BALoraError, match="top_k: 3 has no effect"):
        plan(Recipe(**CAUSAL, methods=["lora", "full"], seeds=[1], top_k=3))


def other(name: str, default: object) -> object:
    """A value of a setting that is not its default."""
    values = {
        "counterfactual_words": "gender", "task_names": ["primary", "auxiliary"], "gate": "per_layer",
        "corda_method": "kpm", "consistency_direction": "reverse", "diversity_loss": "entropy",
        "bias_path_mode": "minimised", "bias_path_reduction": "sum", "semantic_reduction": "sum",
        "task_loss": "dft", "regularized_tokens": "labelled", "anchor_every": 2,
    }  # fmt: skip
    if name.endswith("_schedule"):
        return "two_phase"
    if isinstance(default, bool):
        return not default
    return values.get(name, 0.5 if isinstance(default, float) and default != 0.5 else 0.25 if default == 0.5 else 1)


@pytest.mark.parametrize("data", [CAUSAL, CLASSES], ids=["causal", "classes"])
@pytest.mark.parametrize("method", [*RUN_METHODS, *BASELINE_METHODS])
def test_every_field_is_used_or_refused_by_every_method(method, data):
    """What passes must reach the configuration; what does not reach it must be refused."""
    used, refused = [], []
    for field in [f for part in (Initialization, Regularizers) for f in fields(part)]:
        value = other(field.name, field.default)
        try:
            recipe = Recipe(**data, method=method, **{field.name: value})
            refuse_unused([recipe])
            config = balora_config(recipe, 0, sentence_dim=4)
        except BALoraError as error:
            refused.append(field.name if field.name in str(error) else f"{field.name}: {error}")
        else:
            assert getattr(config, field.name) == value, field.name
            used.append(field.name)
    assert not [name for name in refused if ":" in name]  # each error names the setting
    if method in BASELINE_METHODS:
        assert used == []
    elif RUN_METHODS[method].regularized:
        assert {"consistency_weight", "spectral_k", "temperature"} <= set(used)
    else:
        assert not {"consistency_weight", "spectral_k", "temperature", "anchor_weight", "bias_path_weight"} & set(used)
    assert "pissa_niter" in (used if method in ("pissa", "ba-lora", "qpissa", "qba-lora") else refused)


#: What single fields need beside them to have an effect.
NEEDS = {
    "two_phase_warmup": {"spectral_schedule": "two_phase"},
    "two_phase_ramp": {"spectral_schedule": "two_phase"},
    "anchor_share": {"anchor_weight": 1.0},
    "anchor_every": {"anchor_weight": 1.0},
    "bias_path_mode": {"bias_path_weight": 1.0},
    "bias_path_radius": {"bias_path_weight": 1.0},
    "bias_path_reduction": {"bias_path_weight": 1.0},
    "bias_path_sample_rate": {"bias_path_weight": 1.0},
    "task_names": {"auxiliary": {"train_file": "b.jsonl"}, "method": "lora+reg"},
    "alignment_weight": {
        "auxiliary": {"train_file": "b.jsonl"}, "method": "lora+reg", "task_names": ["primary", "auxiliary"]
    },
    "semantic_weight": {"method": "selora+reg"},
    "semantic_min_similarity": {"method": "selora+reg"},
    "semantic_reduction": {"method": "selora+reg"},
    "gate": {"method": "selora+reg"},
    "gate_hidden": {"method": "selora+reg"},
    "corda_method": {"method": "corda+reg"},
    "oplora_k": {"method": "oplora+reg"},
    "clip_spectral_k": {"label_column": "label"},
    "teacher_cache_mb": {"label_column": "label"},
}  # fmt: skip


@pytest.mark.parametrize("name", [f.name for part in (Initialization, Regularizers) for f in fields(part)])
def test_every_field_of_the_configuration_is_reached_from_a_recipe(name):
    value = other(name, getattr(BALoraConfig(), name))
    recipe = Recipe(**{**CAUSAL, "method": "ba-lora", **NEEDS.get(name, {}), name: value})
    refuse_unused([recipe])
    assert getattr(balora_config(recipe, 0, sentence_dim=4), name) == value


@pytest.mark.parametrize("method", BASELINE_METHODS)
def test_baselines_take_their_own_settings_and_refuse_the_others(method):
    from balora.baselines import BASELINES

    for field in [f for part in (Adapter, AnchorTexts) for f in fields(part)]:
        if field.name in (
            "method",
            "adapter_arguments",
            "quantization_config",
            "wise_ft",
            "after_training",
            "sentence_encoder",
        ):
            continue
        value = {"target_modules": ["a"], "modules_to_save": ["b"], "target_parameters": ["c"]}.get(field.name)
        value = value or (0.5 if isinstance(field.default, float) else "x" if isinstance(field.default, str) else 3)
        if field.name == "anchor_file":
            value = "texts.txt"
        recipe = Recipe(**CAUSAL, method=method, **{field.name: value})
        if field.name in BASELINES[method].settings:
            refuse_unused([recipe])
        else:
            with pytest.raises(BALoraError, match=f"^{field.name}: "):
                refuse_unused([recipe])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"validation_file": "b", "validation_share": 0.1}, ("validation_file", "validation_share")),
        ({"mismatched_file": "b", "mismatched_split": "c"}, ("mismatched_file", "mismatched_split")),
        ({"mismatched_file": "b", "validation_share": 0.1}, ("mismatched_file", "validation_share")),
        ({"validation_file": "b", "validation_split": "c"}, ("validation_file", "validation_split")),
        (
            {"train_file": None, "dataset_name": "d", "validation_share": 0.1, "validation_split": "c"},
            ("validation_split", "validation_share"),
        ),
        ({"world": WorldConfig()}, ("world", "model_name_or_path")),
        ({"world": WorldConfig(), "model_name_or_path": None}, ("world", "train_file")),
        (
            {"world": WorldConfig(), "model_name_or_path": None, "train_file": None, "perplexity_file": "c"},
            ("world", "perplexity_file"),
        ),
        (
            {"auxiliary": {"train_file": "b", "validation_file": "c", "validation_share": 0.1}},
            ("auxiliary: validation_file", "validation_share"),
        ),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_two_settings_of_which_one_would_win_are_both_named(settings, named):
    with pytest.raises(BALoraError, match=f"^{named[0]}, .*{named[1]}: give one"):
        Recipe(**{**CAUSAL, **settings})


@pytest.mark.parametrize("share", [0, None])
def test_a_share_that_holds_nothing_out_may_stand_beside_a_file(share):
    Recipe(**CAUSAL, validation_file="b", validation_share=share)


def test_a_task_names_its_rows_in_place_of_the_study():
    study = Recipe(**CAUSAL, validation_file="b", tasks={"one": {"validation_share": 0.5}, "two": {}})
    assert [(task.validation_file, task.validation_share) for task in task_recipes(study)] == [
        (None, 0.5),
        ("b", None),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dora"}, "method, methods: `balora compare` trains lora, pissa, ba-lora, not dora; set methods"),
        ({"seed": 7}, r"seed, seeds: `balora compare` trains with seeds 42, not 7; set seeds"),
    ],
    ids=["method", "seed"],
)
def test_a_study_refuses_a_setting_of_a_single_run(settings, message):
    with pytest.raises(BALoraError, match=message):
        refuse_settings_of_one_run(Recipe(**CAUSAL, **settings))
    refuse_settings_of_one_run(Recipe(**CAUSAL, **settings, methods=["lora"], seeds=[1]))  # a recipe for both commands


def test_a_task_is_named_only_where_there_are_tasks():
    with pytest.raises(BALoraError, match="task: 'one' has no effect without tasks"):
        single(Recipe(**CAUSAL, task="one"))


@pytest.mark.parametrize("steps", [0, -2])
def test_no_step_is_refused(steps):
    with pytest.raises(BALoraError, match=f"max_steps: {steps} .*-1 .*num_train_epochs"):
        Recipe(**CAUSAL, max_steps=steps)
