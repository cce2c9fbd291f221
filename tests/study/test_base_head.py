"""A base whose classification head is trained: its classes are matched to the rows' by name."""

import json
import warnings

import pytest
import torch
import yaml
from tiny_folder import tiny
from tiny_models import SMALL
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from balora.cli import main


def trained(folder, rows, names: list[str], tmp_path, **others) -> tuple[dict, str]:
    """Save a base with a head of these classes, evaluate it on the rows, and return metrics."""
    tiny(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<unk>"})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(**SMALL | {"vocab_size": len(tokenizer)}, id2label=dict(enumerate(names)))
    config.label2id = {name: i for i, name in enumerate(names)}
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():  # every row is of the base's first class
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([5.0] + [0.0] * (len(names) - 1)))
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"name": "t", "model_name_or_path": str(folder), "label_column": "label", "method": "lora", "r": 2}
    settings |= {"train_file": str(tmp_path / "rows.jsonl"), "validation_file": str(tmp_path / "one.jsonl")}
    settings |= {"output_dir": str(tmp_path / "out"), "training_arguments": {"use_cpu": True}} | others
    (tmp_path / "one.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert main(["evaluate", str(tmp_path / "recipe.yaml")]) == 0
    text = " ".join(str(warning.message) for warning in said)
    return json.loads((tmp_path / "out" / "result.json").read_text())["metrics"], text


def rows_of(*labels: str) -> list[dict]:
    return [{"text": f"the cat sat {word}", "label": label} for word in ("on", "a") for label in labels]


SPELLINGS = [(("positive", "negative"), ""), ((" Positive", "NEGATIVE"), "are taken for the base's")]
OTHERS = [
    (["spam", "ham"], "has the classes spam, ham and the rows have"),
    (["a", "b", "c"], "has 3 outputs and the rows need 2"),
]


@pytest.mark.parametrize(("labels", "said"), SPELLINGS)
def test_classes_have_the_base_s_order_by_name(labels, said, tmp_path):
    metrics, text = trained(tmp_path / "base", rows_of(*labels), ["positive", "negative"], tmp_path)
    assert metrics["accuracy"] == 1
    assert said in text


@pytest.mark.parametrize(("names", "said"), OTHERS)
def test_another_base_s_head_is_a_new_one(names, said, tmp_path):
    _, text = trained(tmp_path / "base", rows_of("positive", "negative"), names, tmp_path)
    assert said in text


def test_label_names_in_another_order_than_the_trained_head_s_are_refused(tmp_path, capsys):
    rows, names = rows_of("positive", "negative"), ["positive", "negative"]
    metrics, _ = trained(tmp_path / "base", rows, names, tmp_path, label_names=names)
    assert metrics["accuracy"] == 1
    with pytest.raises(AssertionError):
        trained(tmp_path / "base", rows, names, tmp_path, label_names=names[::-1], output_dir=str(tmp_path / "other"))
    assert "label_names: negative, positive are the classes of the base's trained head" in capsys.readouterr().err
