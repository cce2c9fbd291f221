"""Question answering in one form: the columns every set is read into, and prompts with answers made from them.

`hotpotqa` and `squad` read their files into these columns, `qa_context` says what of a context a prompt holds, and
`balora.evaluation.qa` scores what a model answers.
"""

import re
from collections.abc import Callable

from datasets import Dataset, Features, List, Value

from balora.data.columns import column_values, row_error
from balora.data.qa_context import select_context
from balora.errors import BALoraError

#: The columns. A context is a list of paragraphs, whose sentences are stripped of outer white space and never blank;
#: `answers` are all accepted ones, the first of them `answer`; `type` and `level` are "" where a set has none;
#: `supporting` are the sentences that an answer rests on.
QA_FEATURES = Features(
    {
        "id": Value("string"),
        "question": Value("string"),
        "context": List({"title": Value("string"), "sentences": List(Value("string"))}),
        "answer": Value("string"),
        "answers": List(Value("string")),
        "type": Value("string"),
        "level": Value("string"),
        "supporting": List(Value("string")),
    }
)

#: For sequence-to-sequence models: fields named as T5 and UnifiedQA name them.
SEQ2SEQ_TEMPLATE = "question: {question} context: {context}"
#: For causal models, which need to be told that the context has ended.
CAUSAL_TEMPLATE = SEQ2SEQ_TEMPLATE + " answer:"


def to_qa_rows(
    dataset: Dataset,
    *,
    source: str,
    max_tokens: int,
    count: Callable[[str], int],
    template: str = SEQ2SEQ_TEMPLATE,
    gold: bool = False,
    seed: int | None = None,
) -> Dataset:
    """Prompts that fit the model, and their answers, as `tokenize_seq2seq` and `to_causal_lm_rows` take them.

    Args:
        dataset: Rows with `QA_FEATURES`, from `hotpotqa_rows` or `squad_rows`.
        source: File or Hub name the rows came from, for errors.
        max_tokens: Tokens a whole prompt may have, as `count` counts them. A causal model's answer needs room beside.
        count: Tokens of a text, special ones included: `lambda text: len(tokenizer(text, verbose=False).input_ids)`.
        template: Text around `{question}` and `{context}`: `SEQ2SEQ_TEMPLATE`, `CAUSAL_TEMPLATE` or one of your own.
            Other braces stand for themselves.
        gold: Choose supporting sentences before all others; see `select_context`.
        seed: Shuffle the paragraphs; see `select_context`.

    Returns:
        The same rows in the same order, with columns `prompt` and `completion`, the answer.

    Raises:
        BALoraError: If the template lacks one of its places, a column is absent, or a prompt is too long even with
            no context.
    """
    for place in ("{question}", "{context}"):
        if place not in template:
            raise BALoraError(f"template: {template!r} has no {place}")
    questions = column_values(dataset, "question", source=source)
    answers = column_values(dataset, "answer", source=source)
    prompts = []
    for number, (question, row) in enumerate(zip(questions, dataset, strict=True), start=1):

        def prompt(context: str, question: str = question) -> str:
            texts = {"{question}": question, "{context}": context}
            return re.sub(r"\{question\}|\{context\}", lambda match: texts[match[0]], template).rstrip()

        least = count(prompt(""))
        if least > max_tokens:
            raise row_error(
                source, number, "question", f"takes {least} tokens with no context, more than max_tokens: {max_tokens}"
            )
        context = select_context(
            row, max_tokens=max_tokens, count=lambda text: count(prompt(text)), gold=gold, seed=seed
        )
        prompts.append(prompt(context))
    return Dataset.from_dict({"prompt": prompts, "completion": answers})
