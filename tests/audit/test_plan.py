import json
from dataclasses import replace

import pytest
from audit_models import WORDS, texts

from balora.audit import AuditSettings
from balora.audit.kinds import CAUSAL, CLASSIFIER, MASKED
from balora.audit.plan import check_settings, plan
from balora.errors import BALoraError

LABELS = ["no", "yes"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": text, "other": "dog", "label": LABELS[i % 2]} for i, text in enumerate(texts(6))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def names(kind, **settings):
    return [part.name for part in plan(AuditSettings("base", **settings), kind, LABELS)]


def test_a_language_model_alone_needs_no_file():
    assert names(CAUSAL) == ["own_texts", "prompts", "words"]
    assert names(CAUSAL, adapter="lora") == ["own_texts", "layers", "prompts", "words", "weights"]
    assert names(CAUSAL, words=None) == ["own_texts"]
    assert names(CAUSAL, adapter="lora", own_texts=0, words=None) == ["weights"]


def test_files_add_their_parts(file, data_dir):
    everything = {
        "wikitext2": str(data_dir / "wikitext2/valid.txt"),
        "crows_pairs": str(data_dir / "crows_pairs/crows_pairs_anonymized.csv"),
        "stereoset": str(data_dir / "stereoset/intrasentence_dev.json"),
        "bbq": [str(data_dir / "bbq/Age.jsonl")],
        "winobias": str(data_dir / "winobias"),
        "winogender": str(data_dir / "winogender"),
        "scorer": "builtins:len",
    }
    found = names(CAUSAL, adapter="lora", data_file=file, **everything)
    assert found[:3] == ["own_texts", "wikitext2", "data_file"]
    assert found[3:7] == ["layers", "prompts", "words", "weights"]
    assert found[7:] == ["crows_pairs", "winobias", "winogender", "stereoset", "bbq", "continuations"]
    assert len(set(found)) == len(found)


def test_rows_of_classifiers_and_masked_models(file):
    rows = {"data_file": file}
    assert names(CLASSIFIER, **rows) == ["classes", "words"]
    assert names(CLASSIFIER, **rows, adapter="lora") == ["classes", "layers", "words", "weights"]
    assert names(CLASSIFIER, **rows, text_pair_column="other") == ["classes"]
    assert names(MASKED, **rows, adapter="lora") == ["layers", "weights"]


def test_layers_read_the_user_s_own_texts_where_there_are_some(file):
    parts = {p.name: p for p in plan(AuditSettings("base", "lora", data_file=file), CAUSAL, [])}
    assert "data_file" in parts["layers"].settings
    parts = {p.name: p for p in plan(AuditSettings("base", "lora"), CAUSAL, [])}
    assert "own_texts" in parts["layers"].settings


@pytest.mark.parametrize(
    ("kind", "settings", "match"),
    [
        (CLASSIFIER, {"wikitext2": "x"}, "^wikitext2: is for a causal language model, and this is a classifier"),
        (CLASSIFIER, {"crows_pairs": "x"}, "^crows_pairs: is for a causal language model or masked language model"),
        (CLASSIFIER, {"scorer": "builtins:len"}, "^scorer: is for a causal"),
        (CLASSIFIER, {"prompts": "x"}, "^prompts: is for a causal"),
        (MASKED, {"bbq": ["x"]}, "^bbq: is for a causal"),
        (MASKED, {"stereoset": "x"}, "^stereoset: is for a causal"),
        (MASKED, {"label_column": "x"}, "^label_column: is for a classifier"),
        (CAUSAL, {"hatecheck": "x"}, "^hatecheck: is for a classifier"),
        (CAUSAL, {"text_pair_column": "x"}, "^text_pair_column: is for a classifier"),
        (CAUSAL, {"label_names": ["x"]}, "^label_names: is for a classifier"),
        (CLASSIFIER, {"label_names": ["x"]}, "^label_names: 1 for the model's 2 classes"),
        (CLASSIFIER, {}, "^nothing to measure of a classifier without texts: give data_file"),
        (MASKED, {}, "^nothing to measure of a masked language model without texts"),
        (CAUSAL, {"own_texts": 0, "words": None}, "^nothing to measure"),
        (CAUSAL, {"words": "nowhere.txt"}, r"^nowhere\.txt: neither a built-in list"),
        (CAUSAL, {"prompts": "nowhere.txt"}, r"nowhere\.txt"),
        (CAUSAL, {"data_file": "nowhere.jsonl"}, r"nowhere\.jsonl"),
        (CAUSAL, {"wikitext2": "nowhere.txt"}, r"^nowhere\.txt: no such file"),
        (CAUSAL, {"stereoset": "nowhere.json"}, r"^nowhere\.json: no such file"),
        (CAUSAL, {"continuations": ["x"]}, "^continuations: .* name a scorer"),
        (CAUSAL, {"scorer": "len"}, "^scorer: 'len' is neither"),
        (CAUSAL, {"scorer": "builtins:len", "continuation_tokens": 0}, "tokens: 0; use at least 1"),
        (CAUSAL, {"data_file": "${NO_SUCH_VARIABLE_HERE}/x"}, "NO_SUCH_VARIABLE_HERE is not set"),
    ],
)
def test_each_mistake_is_one_sentence_that_names_the_setting(kind, settings, match):
    with pytest.raises(BALoraError, match=match) as error:
        names(kind, **settings)
    assert "\n" not in str(error.value)


def test_columns_and_labels_are_checked(file, data_dir):
    with pytest.raises(BALoraError, match="txet"):
        names(CAUSAL, data_file=file, text_column="txet")
    with pytest.raises(BALoraError, match="label"):
        plan(AuditSettings("base", data_file=file, label_column="label"), CLASSIFIER, ["a", "b"])
    with pytest.raises(BALoraError, match=r"^hateful_label: 'hateful' is none of the model's classes, no, yes"):
        names(CLASSIFIER, hatecheck=str(data_dir / "hatecheck/test_suite_cases.csv"))
    found = names(CLASSIFIER, hatecheck=str(data_dir / "hatecheck/test_suite_cases.csv"), hateful_label="yes")
    assert found == ["hatecheck"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"output_dir": None}, "^output_dir: missing; add --output_dir DIR"),
        ({"dtype": "float31"}, "^dtype: 'float31' is none of"),
        ({"batch_size": 0}, "^batch_size: 0; use at least 1"),
        ({"own_texts": -1}, "^own_texts: -1; use at least 0"),
        ({"own_length": 1}, "^own_length: 1; use at least 2"),
        ({"max_samples": 0}, "^max_samples: 0"),
        ({"max_length": 0}, "^max_length: 0"),
        ({"max_matrices": 0}, "^max_matrices: 0"),
        ({"label_column": "label"}, "^label_column: is of data_file, and there is none"),
    ],
)
def test_settings_that_no_file_is_needed_for(changes, match):
    good = AuditSettings("base", output_dir="out")
    check_settings(good)
    with pytest.raises(BALoraError, match=match):
        check_settings(replace(good, **changes))


def test_the_words_of_the_tests_are_in_the_vocabulary():
    assert len(WORDS) == len(set(WORDS)) == 97


class TestBenchmarks:
    """`benchmarks: {name: {settings}}`, as a recipe has them."""

    def test_they_are_parts_beside_the_flat_settings(self, data_dir):
        stereoset, age = (str(data_dir / f) for f in ("stereoset/intrasentence_dev.json", "bbq/Age.jsonl"))
        own = {"stereoset": {"file": stereoset, "max_samples": 3}}
        settings = AuditSettings("base", own_texts=0, words=None, benchmarks=own, bbq=[age], max_samples=5)
        first, second = plan(settings, CAUSAL, [])
        assert (first.name, second.name) == ("stereoset", "bbq")
        assert first.settings == {"benchmarks": own["stereoset"], "max_samples": 5, "seed": 0}
        assert second.settings == {"bbq": [age], "max_samples": 5, "seed": 0}
        assert len(first.measure.keywords["problems"]) == 3
        assert len(second.measure.keywords["problems"].items) == 5

    @pytest.mark.parametrize(
        ("kind", "settings", "match"),
        [
            (CAUSAL, {"benchmarks": {"stereo": {}}}, "^benchmarks: unknown 'stereo'; for a causal language model"),
            (MASKED, {"benchmarks": {"bbq": {}}}, "^benchmarks: unknown 'bbq'; .* there are crows_pairs, winobias"),
            (CAUSAL, {"benchmarks": {"bbq": {}}}, "^benchmarks: bbq: .*files"),
            (CAUSAL, {"benchmarks": {"bbq": {"files": ["x"]}}, "bbq": ["x"]}, "^benchmarks: bbq is also given by bbq"),
            (
                CAUSAL,
                {"benchmarks": {"wikitext2": {"file": "WIKITEXT2"}}, "wikitext2": "WIKITEXT2"},
                "^benchmarks: wikitext2 is also given",
            ),
        ],
    )
    def test_mistakes(self, kind, settings, match, data_dir):
        text = json.dumps(settings).replace("WIKITEXT2", str(data_dir / "wikitext2/valid.txt"))
        with pytest.raises(BALoraError, match=match):
            names(kind, **json.loads(text))
