"""HotpotQA (Yang et al., 2018), its official files and the Hub's, as rows of question answering."""

from typing import Any

from datasets import Dataset

from balora.data.columns import check_strings, column_list, column_values, row_error, shortened
from balora.data.qa import QA_FEATURES
from balora.errors import BALoraError

#: What a context or the supporting facts look like, for messages.
CONTEXT_FORMS = "[[title, [sentence, …]], …] or {title: […], sentences: [[…], …]}"
FACT_FORMS = "[[title, sentence index], …] or {title: […], sent_id: […]}"


def hotpotqa_rows(dataset: Dataset, *, source: str = "HotpotQA") -> Dataset:
    """Read the distractor or fullwiki setting, in the official schema or in that of the Hub's `hotpotqa/hotpot_qa`.

    A supporting fact names a paragraph by its title and a sentence in it by its index from 0. Some of the real ones
    point beyond their paragraph's sentences, and in the fullwiki setting to paragraphs that were not found: what is
    not there, or is blank, supports nothing and is left out.

    Args:
        dataset: Columns `_id` (official) or `id` (Hub), `question`, `answer`, `context`, `supporting_facts`, and
            `type` and `level` if there are any.
        source: File or Hub name it came from, for errors.

    Returns:
        The same rows in the same order, with `balora.data.qa.QA_FEATURES`: one accepted answer, and the supporting
        sentences in the order of their facts, each once.

    Raises:
        BALoraError: If a column is absent, or a value is missing, empty or of another form.
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
    """Titles, each with what goes with it, from the official list of pairs or the Hub's two lists; else `None`."""
    if isinstance(value, dict):
        lists = value.get("title"), value.get(second)
        if not all(isinstance(one, list) for one in lists) or len(lists[0]) != len(lists[1]):
            return None
        value = list(map(list, zip(*lists, strict=True)))
    # `datasets` keeps lists of mixed types as JSON, from which a title such as 1984 comes back as a number.
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
