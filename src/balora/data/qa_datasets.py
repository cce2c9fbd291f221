"""HotpotQA (Yang et al., 2018) and SQuAD (Rajpurkar et al., 2016, 2018) as rows of question answering.

Each is read in the schema of its official files and in that of the Hub.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from datasets import Dataset

from balora.data.columns import check_strings, column_list, column_values, row_error, shortened
from balora.data.qa import QA_FEATURES
from balora.errors import BALoraError

#: The forms of a context and of supporting facts, for errors.
CONTEXT_FORMS = "[[title, [sentence, …]], …] or {title: […], sentences: [[…], …]}"
FACT_FORMS = "[[title, sentence index], …] or {title: […], sent_id: […]}"


def hotpotqa_rows(dataset: Dataset, *, source: str = "HotpotQA") -> Dataset:
    """Read HotpotQA, distractor or fullwiki, in its official schema or that of the Hub's `hotpotqa/hotpot_qa`.

    A supporting fact names a paragraph by its title and a sentence in it by its index from 0. Some facts of the
    published files point beyond a paragraph's sentences, and in the fullwiki setting to paragraphs that were not
    found: facts that point to no sentence, or to a blank one, are left out.

    Args:
        dataset: Columns `_id` (official) or `id` (Hub), `question`, `answer`, `context`, `supporting_facts`, and
            optionally `type` and `level`.
        source: File or Hub name of the table, for errors.

    Returns:
        The same rows in the same order, with `balora.data.qa.QA_FEATURES`: one accepted answer, and the supporting
        sentences in the order of their facts, each once.

    Raises:
        BALoraError: If a column is missing, or a value is missing, empty or invalid.
    """
    id_column = next((name for name in ("_id", "id") if name in dataset.column_names), None)
    if id_column is None:
        raise BALoraError(f"{source}: no column '_id' or 'id'; it has {column_list(dataset)}")
    texts = {}
    for name, column in (("id", id_column), ("question", "question"), ("answer", "answer")):
        texts[name] = column_values(dataset, column, source=source)
        check_strings(texts[name], source=source, column=column)
    for name in ("type", "level"):
        present = name in dataset.column_names
        texts[name] = column_values(dataset, name, source=source) if present else [""] * len(dataset)
        check_strings(texts[name], source=source, column=name, blank=True)
    columns: dict[str, list[Any]] = {name: [value.strip() for value in values] for name, values in texts.items()}
    columns |= {"answers": [[answer] for answer in columns["answer"]], "context": [], "supporting": []}
    contexts = column_values(dataset, "context", source=source)
    facts = column_values(dataset, "supporting_facts", source=source)
    for row, (context, named) in enumerate(zip(contexts, facts, strict=True), start=1):
        paragraphs = _pairs(context, "sentences")
        if not paragraphs or not all(_is_texts(sentences) for _, sentences in paragraphs):
            raise row_error(source, row, "context", f"expected {CONTEXT_FORMS}, found {shortened(context)}")
        pointers = _pairs(named, "sent_id")
        if pointers is None or not all(type(index) is int for _, index in pointers):
            raise row_error(source, row, "supporting_facts", f"expected {FACT_FORMS}, found {shortened(named)}")
        paragraphs = [(title, [sentence.strip() for sentence in sentences]) for title, sentences in paragraphs]
        columns["context"].append([{"title": t, "sentences": list(filter(None, s))} for t, s in paragraphs])
        columns["supporting"].append(_supporting(paragraphs, pointers))
    return Dataset.from_dict({name: columns[name] for name in QA_FEATURES}, features=QA_FEATURES)


def _pairs(value: Any, second: str) -> list[tuple[str, Any]] | None:
    """Return (title, value) pairs from the official list of pairs or the Hub's two lists; otherwise `None`."""
    if isinstance(value, dict):
        lists = value.get("title"), value.get(second)
        if not all(isinstance(one, list) for one in lists) or len(lists[0]) != len(lists[1]):
            return None
        value = list(map(list, zip(*lists, strict=True)))
    # `datasets` stores lists of mixed types as JSON, which turns a title such as 1984 into a number.
    if not isinstance(value, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in (str, int, float) for pair in value
    ):
        return None
    return [(str(title).strip(), other) for title, other in value]


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _supporting(paragraphs: list[tuple[str, list[str]]], facts: list[tuple[str, int]]) -> list[str]:
    found = [
        sentences[index]
        for fact, index in facts
        for title, sentences in paragraphs
        if title == fact and 0 <= index < len(sentences)
    ]
    return list(dict.fromkeys(filter(None, found)))


#: White space after the end of a sentence: after a mark and optional closing quotes, and before no lower-case letter.
#: A full stop after a single letter or one of these titles does not end a sentence.
SENTENCE_BREAK = re.compile(
    r"(?:[!?]|(?<!\b\w)(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bMrs)\.)[\"'”’)\]]*(\s+)(?=[^a-z\s])"
)


def squad_rows(dataset: Dataset, *, source: str = "SQuAD", unanswerable: str = "noanswer") -> Dataset:
    """Read SQuAD 1.1 or 2.0, as official nested JSON or as the Hub's flat rows.

    A context is one paragraph with its article's title, split into sentences by a simple rule of punctuation. Its
    supporting sentences are those that overlap an accepted answer at its `answer_start`. Published offsets are
    sometimes wrong by a character or two, so the text at an offset is not compared with the answer, and an offset
    outside the paragraph supports nothing.

    Args:
        dataset: From an official file, one row per article with columns `title` and `paragraphs` (`context`, `qas`
            with `id`, `question`, `answers`); or flat, with columns `id`, `context`, `question`,
            `answers: {text, answer_start}`, and optionally `title`.
        source: File or Hub name of the table, for errors. In a nested file a row is an article.
        unanswerable: The answer to questions with an empty list of answers.

    Returns:
        One row per question in the file's order, with `balora.data.qa.QA_FEATURES`: distinct accepted answers,
        `type` and `level` "", and titles with spaces instead of underscores.

    Raises:
        BALoraError: If the columns are of neither form, or a value is missing, empty or invalid.
    """
    names = set(dataset.column_names)
    if "paragraphs" in names:
        questions = _nested(dataset, source)
    elif {"id", "context", "question", "answers"} <= names:
        questions = _flat(dataset, source)
    else:
        raise BALoraError(
            f"{source}: neither SQuAD's official 'paragraphs' nor its flat 'id', 'context', 'question' and 'answers'; "
            f"it has {column_list(dataset)}"
        )
    rows = [_row(question, place, unanswerable) for question, place in questions]
    if not rows:
        raise BALoraError(f"{source}: no questions")
    return Dataset.from_dict({name: [row[name] for row in rows] for name in QA_FEATURES}, features=QA_FEATURES)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Return the start and end of each sentence of a paragraph, without white space around it."""
    breaks = list(SENTENCE_BREAK.finditer(text))
    first, last = len(text) - len(text.lstrip()), len(text.rstrip())
    starts = [first, *(found.end(1) for found in breaks)]
    ends = [*(found.start(1) for found in breaks), last]
    return [(start, end) for start, end in zip(starts, ends, strict=True) if start < end]


class _Place(NamedTuple):
    """The position of a question in its file, for errors."""

    source: str
    row: int
    within: str = ""

    def error(self, field: str, problem: str) -> BALoraError:
        if self.within:
            return row_error(self.source, self.row, "paragraphs", f"{self.within}, {field}: {problem}")
        return row_error(self.source, self.row, field, problem)

    def text(self, value: Any, field: str) -> str:
        """Return a value that must be text, stripped."""
        if not isinstance(value, str):
            raise self.error(field, "is missing" if value is None else f"expected text, found {shortened(value)}")
        if not value.strip():
            raise self.error(field, "is empty")
        return value.strip()

    def objects(self, value: Any, field: str) -> list[dict[str, Any]]:
        """Return a value that must be a list of objects."""
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self.error(field, f"expected a list of objects, found {shortened(value)}")
        return value


def _flat(dataset: Dataset, source: str) -> Iterator[tuple[dict[str, Any], _Place]]:
    for number, row in enumerate(dataset, start=1):
        place, answers = _Place(source, number), row["answers"]
        lists = (answers.get("text"), answers.get("answer_start")) if isinstance(answers, dict) else (None, None)
        if not all(isinstance(one, list) for one in lists) or len(lists[0]) != len(lists[1]):
            raise place.error("answers", f"expected {{text: […], answer_start: […]}}, found {shortened(answers)}")
        yield {**row, "answers": list(zip(*lists, strict=True))}, place


def _nested(dataset: Dataset, source: str) -> Iterator[tuple[dict[str, Any], _Place]]:
    for number, article in enumerate(dataset, start=1):
        paragraphs = _Place(source, number).objects(article["paragraphs"], "paragraphs")
        for p, paragraph in enumerate(paragraphs, start=1):
            questions = _Place(source, number, f"paragraph {p}").objects(paragraph.get("qas"), "qas")
            for q, question in enumerate(questions, start=1):
                place = _Place(source, number, f"paragraph {p}, question {q}")
                answers = [
                    (answer.get("text"), answer.get("answer_start"))
                    for answer in place.objects(question.get("answers"), "answers")
                ]
                known = {"title": article.get("title"), "context": paragraph.get("context"), "answers": answers}
                yield {**question, **known}, place


def _row(question: dict[str, Any], place: _Place, unanswerable: str) -> dict[str, Any]:
    place.text(question.get("context"), "context")
    context, spans = question["context"], sentence_spans(question["context"])
    answers = [place.text(text, "answers") for text, _ in question["answers"]]
    wrong = next((start for _, start in question["answers"] if type(start) is not int), 0)
    if type(wrong) is not int:
        raise place.error("answers", f"answer_start must be a whole number, not {shortened(wrong)}")
    accepted = list(dict.fromkeys(answers)) or [unanswerable]
    title = question.get("title")
    touched = [
        context[start:end]
        for start, end in spans
        if any(0 <= at < end and start < at + len(text) for text, at in question["answers"])
    ]
    return {
        "id": place.text(question.get("id"), "id"),
        "question": place.text(question.get("question"), "question"),
        "context": [
            {
                "title": "" if title is None else place.text(title, "title").replace("_", " "),
                "sentences": [context[start:end] for start, end in spans],
            }
        ],
        "answer": accepted[0],
        "answers": accepted,
        "type": "",
        "level": "",
        "supporting": list(dict.fromkeys(touched)),
    }
