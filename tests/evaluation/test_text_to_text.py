"""Predictions read from generated text, and their scores."""

import numpy as np
import pytest
import torch
import transformers as hf
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score
from tiny_models import T5, make, word_tokenizer

from balora import BALoraConfig, BALoraTrainer, get_balora_model
from balora.data import to_classification_rows, to_text_to_text_rows, tokenize_seq2seq
from balora.evaluation.classification import classification_metrics, predict_labels, text_to_text_metrics


class Writes(torch.nn.Module):
    """Stands for a model: what it writes is given, what it is asked is noted."""

    def __init__(self, tokenizer, texts: list[str]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.texts, self.tokenizer, self.asked = iter(texts), tokenizer, []

    def generate(self, input_ids, attention_mask, **how):
        assert not self.training
        self.asked.append(how)
        rows = [self.tokenizer(next(self.texts))["input_ids"] for _ in input_ids]
        width = max(map(len, rows))
        return torch.tensor([[0, *row, *[0] * (width - len(row))] for row in rows])  # the decoder starts with padding


def batches(count: int, size: int = 2) -> list[dict[str, torch.Tensor]]:
    ids = torch.ones(count, 3, dtype=torch.long)
    return [{"input_ids": part, "attention_mask": part, "labels": part} for part in ids.split(size)]


def test_names_become_ids_and_everything_else_is_no_class():
    tokenizer = word_tokenizer()
    model = Writes(tokenizer, ["not_entailment", "entailment", "a", "", "entailment entailment"]).train()
    predictions = predict_labels(model, batches(5), tokenizer, ["entailment", "not_entailment"], max_new_tokens=7)
    assert predictions.tolist() == [1, 0, -1, -1, -1]
    assert predictions.dtype == np.int64
    assert all(how["max_new_tokens"] == 7 and not how["do_sample"] and how["num_beams"] == 1 for how in model.asked)
    assert model.training


def test_numbers_are_read_and_the_rest_is_nan():
    tokenizer = word_tokenizer()
    predictions = predict_labels(
        Writes(tokenizer, ["2.6", "0.0", "a", "nan", "inf", "5.0 a"]), batches(6), tokenizer, []
    )
    np.testing.assert_array_equal(predictions, [2.6, 0.0, np.nan, np.nan, np.nan, np.nan])


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 2)), min_size=2), st.sampled_from([2, 3]))
def test_scores_without_unparsed_texts_are_classification_s_and_with_them_lower(pairs, classes):
    labels = np.array([min(label, classes - 1) for label, _ in pairs])
    written = np.array([min(prediction, classes - 1) for _, prediction in pairs])
    names = [f"class {i}" for i in range(classes)]
    parsed = np.where(written == -1, labels, written)
    known = classification_metrics(np.eye(classes)[parsed], labels)
    scores = text_to_text_metrics(parsed, labels, names)
    assert scores.pop("unparsed") == 0
    assert scores == pytest.approx({name: known[name] for name in scores})
    assert {"accuracy", "f1", "matthews", "minority_recall"} == scores.keys()
    worse = text_to_text_metrics(written, labels, names)
    assert worse["unparsed"] == (written == -1).mean()
    assert worse["accuracy"] == accuracy_score(labels, written)
    assert worse["accuracy"] <= scores["accuracy"]
    assert worse["f1"] <= scores["f1"] + 1e-12


def test_an_unparsed_text_is_the_other_class_of_two():
    labels, written = np.array([0, 0, 1, 1, 1]), np.array([-1, 0, 1, -1, 1])
    scores = text_to_text_metrics(written, labels, ["no", "yes"])
    assert scores["f1"] == pytest.approx(f1_score(labels, [1, 0, 1, 0, 1]))
    assert scores["minority_recall"] == 0.5


def test_an_unparsed_number_counts_as_minus_one():
    labels, written = np.array([0.0, 1.0, 2.0, 5.0]), np.array([np.nan, 1.2, 2.0, 4.8])
    scores = text_to_text_metrics(written, labels, [])
    assert scores["pearson"] == pytest.approx(np.corrcoef([-1.0, 1.2, 2.0, 4.8], labels)[0, 1])
    assert scores["unparsed"] == 0.25


def test_a_trained_t5_writes_the_classes_of_a_task(tmp_path):
    """From rows to scores: the tiny model learns to name the word that it reads."""
    tokenizer = word_tokenizer()
    table = Dataset.from_dict(
        {"sentence": ["a a", "b b", "a", "b"] * 4, "label": ["entailment", "not_entailment"] * 8}
    )
    rows, names = to_classification_rows(table, source="x")
    text = to_text_to_text_rows(rows, names, task="a", fields=["b"])
    tokens = tokenize_seq2seq(text, tokenizer, source="x", max_length=12, max_target_length=4)
    torch.manual_seed(0)
    base = hf.T5ForConditionalGeneration(hf.T5Config(**{**T5, "vocab_size": len(tokenizer), "dropout_rate": 0.0}))
    model = get_balora_model(base, BALoraConfig(method="lora+reg", r=8, lora_alpha=64, target_modules="all-linear"))
    collator = hf.DataCollatorForSeq2Seq(tokenizer, model=model)
    trainer = BALoraTrainer(
        model=model,
        args=hf.TrainingArguments(
            str(tmp_path),
            max_steps=40,
            per_device_train_batch_size=16,
            learning_rate=2e-2,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            save_strategy="no",
        ),
        train_dataset=tokens,
        data_collator=collator,
    )
    rows_in_order = [collator([tokens[i] for i in range(start, start + 8)]) for start in (0, 8)]
    labels = np.array(rows["label"])
    before = text_to_text_metrics(predict_labels(model, rows_in_order, tokenizer, names), labels, names)
    trainer.train()
    after = text_to_text_metrics(predict_labels(model, rows_in_order, tokenizer, names), labels, names)
    assert before["unparsed"] == 1
    assert after == {"accuracy": 1.0, "f1": 1.0, "matthews": 1.0, "minority_recall": 1.0, "unparsed": 0.0}


def test_generation_s_own_limits_do_not_stand_in_the_way():
    tokenizer, model = word_tokenizer(), make("bart")
    model.generation_config.update(max_length=3, num_beams=4, min_length=2)
    with torch.no_grad():
        assert predict_labels(model, batches(2), tokenizer, ["entailment"], max_new_tokens=5).shape == (2,)
