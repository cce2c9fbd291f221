"""Valid rows in every file format, from which bad files are made, and their readers."""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tiny_models import word_tokenizer

from balora.data import (
    hotpotqa_rows,
    load_table,
    oasst_conversations,
    split_oasst,
    squad_rows,
    stream_table,
    thin_by_time,
    to_causal_lm_rows,
    to_classification_rows,
    to_qa_rows,
    to_text_to_text_rows,
    tokenize_seq2seq,
)
from balora.data.glue import GLUE, glue_columns
from balora.data.mixture import mix_tasks
from balora.data.perturbation import KINDS, perturb
from balora.data.streaming import stream_causal_lm_rows
from balora.data.subsampling import subsample_to_ratio

Rows = list[dict[str, Any]]
TURNS = [{"role": "user", "content": "who sat ?"}, {"role": "assistant", "content": "the cat"}]


def message(name: str, parent: str | None, role: str, **more: Any) -> dict[str, Any]:
    given = {"message_id": name, "parent_id": parent, "role": role, "text": f"text {name}", "lang": "en"}
    labels = {"quality": {"value": 0.5, "count": 2}}
    return {**given, "message_tree_id": "m1", "created_date": "2023-02-05T14:23:50+00:00", "labels": labels, **more}


CLASSES = [{"text": f"the cat {i}", "text_pair": "a dog", "label": i % 2} for i in range(6)]
NAMED = [{"sentence1": f"the cat {i}", "sentence2": "a", "label": ["yes", "no"][i % 2]} for i in range(4)]
ENTAILED = [{**row, "label": ["entailment", "not_entailment"][i % 2]} for i, row in enumerate(NAMED)]
ALIKE = [{"sentence1": f"the cat {i}", "sentence2": "a", "score": 1.5} for i in range(4)]
SCORES = [{"text": f"the cat {i}", "label": 0.5 * i} for i in range(4)]
PAIRS = [{"prompt": f"who sat on {i} ?", "completion": "cat", "date": f"2023-02-0{i + 1}T01:02:03Z"} for i in range(4)]
CHATS = [{"messages": TURNS}, {"messages": [{"role": "system", "content": "be kind"}, *TURNS]}]
TEXTS = [{"text": "the cat sat"}, {"text": "on a mat"}]
HOTPOT = [
    {
        "_id": f"h{i}", "question": "Who made the film?", "answer": "Ann", "type": "bridge", "level": "easy",
        "context": [["Film", ["The film was made.", "By Ann."]], ["Ann", ["She was born."]]],
        "supporting_facts": [["Film", 0], ["Ann", 0]],
    }
    for i in range(2)
]  # fmt: skip
HUB_HOTPOT = [
    {
        **{("id" if name == "_id" else name): value for name, value in row.items()},
        "context": {"title": ["Film", "Ann"], "sentences": [["The film was made.", "By Ann."], ["She was born."]]},
        "supporting_facts": {"title": ["Film", "Ann"], "sent_id": [0, 0]},
    }
    for row in HOTPOT
]
SQUAD = [
    {"id": "s1", "title": "A_b", "context": "The cat sat. On a mat.", "question": "Who sat?",
     "answers": {"text": ["cat"], "answer_start": [4]}},
    {"id": "s2", "title": "A_b", "context": "The cat sat.", "question": "Who?",
     "answers": {"text": [], "answer_start": []}},
]  # fmt: skip
ARTICLES = [
    {"title": "A_b", "paragraphs": [{"context": "The cat sat. On a mat.", "qas": [
        {"id": "s1", "question": "Who sat?", "answers": [{"text": "cat", "answer_start": 4}]}]}]}
]  # fmt: skip
MESSAGES = [
    message("m1", None, "prompter"),
    message("m2", "m1", "assistant", rank=0, review_result=True),
    message("m3", "m1", "assistant", rank=1, deleted=False),
    message("m4", "m2", "prompter"),
    message("m5", "m4", "assistant", synthetic=False),
]
TREES = [
    {"message_tree_id": "m1", "prompt": {**MESSAGES[0], "replies": [{**MESSAGES[1], "replies": []}, MESSAGES[2]]}}
]


def classified(path: str) -> None:
    table = load_table(path)
    rows, names = to_classification_rows(table, source=path)
    assert len(rows) == len(table) > 0
    assert set(rows["label"]) <= set(range(len(names))) or not names
    to_text_to_text_rows(rows, names, task="rte", fields=["a", "b"][: len(rows.column_names) - 1])
    if names:
        subsample_to_ratio(rows, [1.0] * len(names), seed=0, source=path, label_names=names)


def of_glue(path: str) -> None:
    table = load_table(path)
    task = "stsb" if "score" in table.column_names else "rte"
    to_classification_rows(
        table, source=path, label_names=list(GLUE[task].label_names), **glue_columns(task, table, source=path)
    )


def completed(path: str) -> None:
    table = load_table(path)
    rows = to_causal_lm_rows(table, source=path)
    assert len(rows) == len(table) > 0
    if rows.column_names == ["prompt", "completion"]:
        mix_tasks({"a": rows, "b": rows}, {"a": 1, "b": 2}, seed=0)
        if not isinstance(rows[0]["prompt"], list):
            tokenize_seq2seq(rows, word_tokenizer(), source=path, max_length=8, max_target_length=4)


def streamed(path: str) -> None:
    assert list(stream_causal_lm_rows(stream_table(path), source=path))


def thinned(path: str) -> None:
    table = load_table(path)
    assert len(thin_by_time(table, "daily", seed=0, source=path, column="date")) > 0


def asked(read: Callable) -> Callable[[str], None]:
    def action(path: str) -> None:
        rows = read(load_table(path), source=path)
        to_qa_rows(rows, source=path, max_tokens=200, count=lambda text: len(text.split()), gold=True, seed=1)
        # Questions beyond max_tokens were refused: no more is perturbed.
        for kind in KINDS:
            perturb(rows["question"][0], kind, 1.0, 0)

    return action


def conversed(path: str) -> None:
    rows = oasst_conversations(path)
    assert len(rows) > 0
    if len(set(rows["tree"])) > 1:
        split_oasst(rows, validation_share=0.5, seed=0, source=path)


#: By reader: its valid rows, their file formats, and the function that reads them.
TABLES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet")
NESTED = (".jsonl", ".json", ".parquet")
READERS: dict[str, tuple[list[Rows], tuple[str, ...], Callable[[str], None]]] = {
    "classes": ([CLASSES, NAMED, SCORES], TABLES, classified),
    "glue": ([ENTAILED, ALIKE], TABLES, of_glue),
    "causal": ([PAIRS, CHATS, TEXTS], (*TABLES, ".txt"), completed),
    "streamed": ([PAIRS, CHATS, TEXTS], (*TABLES, ".txt"), streamed),
    "times": ([PAIRS], TABLES, thinned),
    "hotpotqa": ([HOTPOT, HUB_HOTPOT], NESTED, asked(hotpotqa_rows)),
    "squad": ([SQUAD, ARTICLES], NESTED, asked(squad_rows)),
    "oasst": ([MESSAGES, TREES], (*NESTED, ".jsonl.gz"), conversed),
}


def written(rows: Rows, suffix: str) -> bytes | str:
    """Return rows in a file format, as bytes where the format is binary."""
    if suffix == ".parquet":
        try:
            file = io.BytesIO()
            pq.write_table(pa.Table.from_pylist([row for row in rows if isinstance(row, dict)] or [{"a": 1}]), file)
            return file.getvalue()
        except (pa.ArrowException, OverflowError, ValueError, TypeError, AttributeError):
            return b"PAR1"
    if suffix.startswith(".jsonl"):
        return "".join(json.dumps(row) + "\n" for row in rows)
    if suffix == ".json":
        return json.dumps(rows)
    if suffix == ".txt":
        return "\n".join(str(row) for row in rows)
    records = [list(row.values()) if isinstance(row, dict) else [row] for row in rows]
    names = list(rows[0]) if rows and isinstance(rows[0], dict) else ["text"]
    if suffix == ".tsv":
        return "\n".join("\t".join(map(str, record)) for record in [names, *records])
    text = io.StringIO()
    try:
        csv.writer(text, escapechar="\\").writerows([names, *records])
    except csv.Error:
        return "a,b\n1"
    return text.getvalue()
