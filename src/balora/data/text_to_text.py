"""Rows and tokens for sequence-to-sequence models, in the text-to-text form on which T5 was trained.

Classification and regression rows become a prompt and a completion (Raffel et al. 2020, section 2.4 and appendix D),
and prompts with completions are tokenized.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from balora.data.columns import column_list
from balora.data.truncation import report_cut
from balora.errors import BALoraError
from balora.utils.lengths import check_lengths, check_max_length

#: Regression targets are rounded to multiples of 1/5 = 0.2, so that there are few different ones.
STEPS_PER_UNIT = 5


def to_text_to_text_rows(dataset: Dataset, label_names: list[str], *, task: str, fields: Sequence[str]) -> Dataset:
    """Convert rows of `to_classification_rows` to text: `mrpc sentence1: … sentence2: …` and `equivalent`.

    Args:
        dataset: Columns `text`, `text_pair` if there are two texts, and `label`.
        label_names: Names by class id, which become the targets; empty for regression, whose targets are numbers
            rounded to the nearest 0.2 and written with one decimal.
        task: Name at the start of every input, such as `mrpc`.
        fields: Names of the texts in the input, where they come in alphabetical order, as in T5: MNLI's `hypothesis`
            before its `premise`.

    Returns:
        The same rows in the same order, with columns `prompt` and `completion`.

    Raises:
        BALoraError: If the number of fields is not the number of texts.
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
    """Format a regression target as T5 does: 2.57 is `2.6`; ties go to the even multiple of 0.2, 2.5 is `2.4`."""
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
        dataset: Columns `prompt` and `completion`, strings. White space before a completion is removed: it separates
            prompt and completion in a causal model's row, and here the completion is a separate text.
        tokenizer: The model's tokenizer.
        source: File or Hub name of the rows, for errors.
        max_length: Truncate prompts to this many tokens, special ones included. `None` never truncates.
        max_target_length: The same for completions; their end of text is kept.
        context: Context length of the encoder and of the decoder, from `balora.data.context_length`.

    Returns:
        `input_ids`, `attention_mask`, and `labels` that end in the tokenizer's end of text.

    Raises:
        BALoraError: If prompts and completions are not strings, a row is longer than the context and no limit is set,
            or a limit exceeds the context or leaves no room for text.
    """
    _check_rows(dataset, tokenizer, source)
    check_max_length(max_length, context)
    check_max_length(max_target_length, context, setting="max_target_length")
    eos = tokenizer.eos_token_id
    around_target = tokenizer(text_target="")["input_ids"]  # special tokens that the tokenizer adds to a target
    missing_end = [] if around_target[-1:] == [eos] else [eos]
    for name, limit, special in (
        ("max_length", max_length, tokenizer.num_special_tokens_to_add()),
        ("max_target_length", max_target_length, len(around_target + missing_end)),
    ):
        if limit is not None and limit <= special:
            raise BALoraError(f"{name}: {limit} leaves no room for text beside {special} special tokens; use more")
    target_limit = None if max_target_length is None else max_target_length - len(missing_end)

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        # verbose=False: rows that are too long raise an error below, so the tokenizer need not warn.
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

    columns = dataset.column_names
    tokenized = dataset.map(encode, batched=True, remove_columns=columns, desc=f"tokenizing {source}")
    check_lengths(map(len, tokenized["input_ids"]), source=source, max_length=max_length, context=context)
    check_lengths(
        map(len, tokenized["labels"]),
        source=source,
        max_length=max_target_length,
        context=context,
        setting="max_target_length",
    )
    if max_length is not None:
        prompts = ((prompt,) for prompt in dataset["prompt"])
        whole = partial(tokenizer, verbose=False)
        report_cut(tokenized["input_ids"], prompts, whole, source=source, limit=max_length)
    if max_target_length is not None:
        report_cut(
            tokenized["labels"],
            ((completion.lstrip(),) for completion in dataset["completion"]),
            lambda text: {"input_ids": tokenizer(text_target=text, verbose=False)["input_ids"] + missing_end},
            source=source,
            limit=max_target_length,
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
