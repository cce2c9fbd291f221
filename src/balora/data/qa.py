"""Rows of question answering: their columns, and prompts with as much of the context as fits.

`qa_datasets` reads HotpotQA and SQuAD into these columns; `balora.evaluation.qa` scores a model's answers.
"""

import math
import random
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from datasets import Dataset, Features, List, Value

from balora.data.columns import column_values, row_error
from balora.errors import BALoraError

#: The columns. A context is a list of paragraphs; sentences are stripped and never blank; `answers` are all accepted
#: answers, `answer` the first of them; `type` and `level` are "" if a dataset has none; `supporting` are the sentences
#: that support the answer.
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

WORD = re.compile(r"\w+")
#: For sequence-to-sequence models: the field names of T5 and UnifiedQA.
SEQ2SEQ_TEMPLATE = "question: {question} context: {context}"
#: For causal models, which need a mark at the end of the context.
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
    """Write a prompt that fits the model for each question, with the answer as its completion.

    The rows are input to `tokenize_seq2seq` or `to_causal_lm_rows`.

    Args:
        dataset: Rows with `QA_FEATURES`, from `hotpotqa_rows` or `squad_rows`.
        source: File or Hub name of the rows, for errors.
        max_tokens: Largest number of tokens of a whole prompt. Leave room for a causal model's answer.
        count: Counts the tokens of a text, special ones included:
            `lambda text: len(tokenizer(text, verbose=False).input_ids)`.
        template: Text around `{question}` and `{context}`: `SEQ2SEQ_TEMPLATE`, `CAUSAL_TEMPLATE` or your own. Other
            braces are kept as they are.
        gold: Choose supporting sentences before all others; see `select_context`.
        seed: Shuffle the paragraphs; see `select_context`.

    Returns:
        The same rows in the same order, with columns `prompt` and `completion`, the answer.

    Raises:
        BALoraError: If the template lacks `{question}` or `{context}`, a column is missing, or a prompt is too long
            even without context.
    """
    for place in ("{question}", "{context}"):
        if place not in template:
            raise BALoraError(f"template: {template!r} has no {place}; add it")
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
                source, number, "question", f"takes {least} tokens without context, more than max_tokens: {max_tokens}"
            )
        context = select_context(
            row, max_tokens=max_tokens, count=lambda text: count(prompt(text)), gold=gold, seed=seed
        )
        prompts.append(prompt(context))
    return Dataset.from_dict({"prompt": prompts, "completion": answers})


class Sentence(NamedTuple):
    """A sentence of a context, with its paragraph's number and its index there, both from 0."""

    paragraph: int
    index: int
    title: str
    text: str


def select_context(
    row: Mapping[str, Any],
    *,
    max_tokens: int,
    count: Callable[[str], int],
    gold: bool = False,
    seed: int | None = None,
) -> str:
    """Select the sentences of a row's context that fit, without using the answer.

    HotpotQA's ten paragraphs are about 1,300 tokens, and T5 takes 512. The first 512 in the file's order hold all
    supporting sentences in one row of five; the sentences that share rare words with the question do in most rows.

    1. Each sentence is scored by the words that it shares with the question and by its index in its paragraph:
       score = Σ_w ln(n / n_w) − i, over the question's words w that occur in the sentence or its paragraph's title,
       where n is the number of sentences, n_w the number of those with w in them or their title, and i ≥ 0 the
       sentence's index. Words are runs of letters and digits, in lower case. A word of every sentence adds nothing,
       and the first sentences of a paragraph, which introduce its subject, need fewer words.
    2. Sentences are ranked by score; ties go to the smaller index, then to the earlier paragraph. With `gold`, the
       supporting sentences (all with the same text) come before all others.
    3. The k best are kept, with the largest k whose text fits, found by bisection, which assumes that `count` grows
       with the text. The text always fits.
    4. The kept sentences are written in their order in the context, each paragraph's after its title: `Title: sentence
       sentence`, with single spaces between sentences and between paragraphs.

    Args:
        row: A row of `QA_FEATURES`: its `id`, `question`, `context`, and with `gold` `supporting`.
        max_tokens: Largest number of tokens of the text.
        count: Counts the tokens of a text.
        gold: Put supporting sentences first, for an upper bound or for training on contexts that hold the answer.
        seed: Shuffle the paragraphs, by seed and row id; the kept sentences are the same if `count` does not depend on
            their order. Default: the file's order.

    Returns:
        The text; "" if not even the best sentence fits.
    """
    sentences = [
        Sentence(number, index, paragraph["title"], text)
        for number, paragraph in enumerate(row["context"])
        for index, text in enumerate(paragraph["sentences"])
    ]
    supporting = set(row["supporting"]) if gold else set()
    scores = _scores(row["question"], sentences)
    ranked = sorted(
        zip(scores, sentences, strict=True),
        key=lambda pair: (pair[1].text not in supporting, -pair[0], pair[1].index, pair[1].paragraph),
    )
    order = list(range(len(row["context"])))
    if seed is not None:
        random.Random(f"{seed} {row['id']}").shuffle(order)

    def best(k: int) -> str:
        return _text([sentence for _, sentence in ranked[:k]], order)

    return best(bisect_right(range(1, len(ranked) + 1), max_tokens, key=lambda k: count(best(k))))


def _scores(question: str, sentences: list[Sentence]) -> list[float]:
    asked = _words(question)
    shared = [asked & _words(f"{sentence.title} {sentence.text}") for sentence in sentences]
    found_in = Counter(word for words in shared for word in words)
    weight = {word: math.log(len(sentences) / found) for word, found in found_in.items()}
    # fsum does not depend on the order of the set, which differs between processes.
    return [
        math.fsum(weight[word] for word in words) - sentence.index
        for words, sentence in zip(shared, sentences, strict=True)
    ]


def _words(text: str) -> set[str]:
    return set(WORD.findall(text.lower()))


def _text(kept: list[Sentence], order: list[int]) -> str:
    """Join the kept sentences, with the paragraphs in the given order."""
    parts = []
    for paragraph in order:
        own = sorted(sentence for sentence in kept if sentence.paragraph == paragraph)
        if own:
            parts.append(paragraph_text(own[0].title, [sentence.text for sentence in own]))
    return " ".join(parts)


def paragraph_text(title: str, sentences: list[str]) -> str:
    """Return a paragraph as `Title: sentence sentence`, or its sentences if there is no title."""
    return (f"{title}: " if title else "") + " ".join(sentences)
