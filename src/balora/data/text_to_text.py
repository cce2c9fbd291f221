"""Rows for sequence-to-sequence models: any task as text in, text out, in the form T5 was trained on.

Classification and regression rows become a prompt and a completion (Raffel et al. 2020, section 2.4 and appendix D),
and prompts with completions become the model's input.
"""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from balora.data.columns import column_list
from balora.errors import BALoraError
from balora.utils.lengths import check_lengths, check_max_length

#: Regression targets are rounded to multiples of its inverse, 0.2, so that there are few of them to write.
STEPS_PER_UNIT = 5


def to_text_to_text_rows(dataset: Dataset, label_names: list[str], *, task: str, fields: Sequence[str]) -> Dataset:
    """Rows of `to_classification_rows` as text: `mrpc sentence1: … sentence2: …` and `equivalent`.

    Args:
        dataset: Columns `text`, `text_pair` if there are two texts, and `label`.
        label_names: Names by class id, which become the targets; empty for regression, whose targets are numbers
            rounded to the nearest 0.2 and written with one decimal.
        task: Name that begins every input, such as `mrpc`.
        fields: What the texts are called in the input. They stand there in the names' alphabetical order, as T5 has
            them: MNLI's `hypothesis` before its `premise`.

    Returns:
        The same rows in the same order, with columns `prompt` and `completion`.

    Raises:
        BALoraError: If there is not one field for each text.
    """
    texts = [name for name in ("text", "text_pair") if name in dataset.column_names]
    if len(fields) != len(texts):
        raise BALoraError(
            f"fields: {', '.join(fields) or 'none'}, but the texts of a row are {' and '.join(texts)}; name each"
        )
    named = sorted(zip(fields, (dataset[name][:] for name in texts), strict=True), key=lambda pair: pair[0])
    prompts = [
        " ".join([task, *(f"{field}: {text}" for (field, _), text in zip(named, row, strict=True))])
        for row in zip(*(column for _, column in named), strict=True)
    ]
    labels = dataset["label"][:]
    completions = [label_names[label] for label in labels] if label_names else [number_as_text(x) for x in labels]
    return Dataset.from_dict({"prompt": prompts, "completion": completions})


def number_as_text(value: float) -> str:
    """A regression target as T5 writes it: 2.57 is `2.6`; a tie goes to the even multiple of 0.2, 2.5 is `2.4`."""
    return f"{round(value * STEPS_PER_UNIT) / STEPS_PER_UNIT:.1f}"


def tokenize_seq2seq(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: str,
    max_length: int | None = None,
    max_target_length: int | None = None,
    context: int | None = None,
) -> Dataset:
    """Tokenize prompts for the encoder and completions for the decoder, without padding.

    Args:
        dataset: Columns `prompt` and `completion`, strings. White space before a completion is left out: it keeps it
            apart from its prompt in a causal model's row, and here it begins a text of its own.
        tokenizer: The model's.
        source: File or Hub name the rows came from, for errors.
        max_length: Truncate prompts to this many tokens, special ones included. `None` never truncates.
        max_target_length: The same for completions; their end of text stays.
        context: Tokens the encoder and the decoder each take, from `balora.data.context_length`.

    Returns:
        `input_ids`, `attention_mask`, and `labels` that end in the tokenizer's end of text.

    Raises:
        BALoraError: If the rows are no strings of prompt and completion, a row is longer than the context and no limit
            is set, or a limit does not fit the model or leaves no room for text.
    """
    _check_rows(dataset, tokenizer, source)
    check_max_length(max_length, context)
    check_max_length(max_target_length, context, setting="max_target_length")
    eos = tokenizer.eos_token_id
    around_target = tokenizer(text_target="")["input_ids"]  # what the tokenizer itself puts around a target
    missing_end = [] if around_target[-1:] == [eos] else [eos]
    for name, limit, special in (
        ("max_length", max_length, tokenizer.num_special_tokens_to_add()),
        ("max_target_length", max_target_length, len(around_target + missing_end)),
    ):
        if limit is not None and limit <= special:
            raise BALoraError(f"{name}: {limit} leaves no room for text beside {special} special tokens; use more")
    target_limit = None if max_target_length is None else max_target_length - len(missing_end)

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        # Too long a row is our error to raise, not the tokenizer's to warn of: hence verbose=False.
        prompts = tokenizer(batch["prompt"], truncation=max_length is not None, max_length=max_length, verbose=False)
        targets = tokenizer(
            text_target=[completion.lstrip() for completion in batch["completion"]],
            truncation=target_limit is not None,
            max_length=target_limit,
            verbose=False,
        )
        return {
            "input_ids": prompts["input_ids"],
            "attention_mask": prompts["attention_mask"],
            "labels": [ids + missing_end for ids in targets["input_ids"]],
        }

    tokenized = dataset.map(encode, batched=True, remove_columns=dataset.column_names)
    check_lengths(map(len, tokenized["input_ids"]), source=source, max_length=max_length, context=context)
    check_lengths(
        map(len, tokenized["labels"]),
        source=source,
        max_length=max_target_length,
        context=context,
        setting="max_target_length",
    )
    return tokenized


def _check_rows(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    forms = {name: getattr(dataset.features.get(name), "dtype", None) for name in ("prompt", "completion")}
    if set(forms.values()) != {"string"}:
        raise BALoraError(
            f"{source}: a sequence-to-sequence model takes a prompt and a completion, both text; the rows have "
            f"{column_list(dataset)}"
        )
    if tokenizer.eos_token_id is None:
        raise BALoraError(f"{source}: the tokenizer has no eos_token to end a completion with; set one")
