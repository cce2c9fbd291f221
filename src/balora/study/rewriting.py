"""SDFT's data step (Yang et al. 2024, 2402.13669): the base model rewrites the training answers before training.

Shown an instruction and its reference answer, the model writes an answer of its own, which is trained on if it says
the same (`keeps_answer`), else the reference answer is. What it wrote is kept in a cache folder, batch by batch, for
every method, seed and resumed run, and beside each run.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from filelock import FileLock
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.data.chat_tokens import are_chats
from balora.data.special_tokens import added_tokens
from balora.errors import BALoraError
from balora.evaluation.generation import generate_completions
from balora.evaluation.maths import extract_answer
from balora.study.model_and_data import ModelAndData
from balora.utils.distributed import is_main_process
from balora.utils.files import cache_folder, weights_digest, write_jsonl
from balora.utils.lengths import context_length
from balora.utils.progress import tracked

#: What the model is asked. The paper's template has the same three parts; the words are ours.
REQUEST = (
    "Below are an instruction and a reference answer to it. Answer the instruction yourself, in your own words, and "
    "say what the reference answer says.\n\n"
    "### Instruction:\n{instruction}\n\n### Reference answer:\n{answer}\n\n### Your answer:\n"
)
#: What an answer says that is about the request, and not an answer to the instruction.
GIVEAWAYS = ("reference answer", "your answer", "my answer", "own words", "the instruction", "###")
#: Largest number of words of an answer that is all final answer, such as a label.
SHORT = 8
BATCH_SIZE = 16


def keeps_answer(written: str, answer: str) -> bool:
    """Return whether a rewritten answer stands for the reference answer.

    It must say something, and nothing about the request. If the reference answer marks its final answer (`####`,
    `\\boxed{}`), it must come to the same; if the reference is at most 8 words, it must contain them. Otherwise any
    answer will do, as in the authors' code for data without an answer to extract.
    """
    if not written.strip() or any(words in written.lower() for words in GIVEAWAYS):
        return False
    if "####" in answer or "\\boxed" in answer:
        return _plain(extract_answer(written) or "") == _plain(extract_answer(answer) or "")
    if len(answer.split()) <= SHORT:
        return re.search(rf"(?<!\w){re.escape(_plain(answer))}(?!\w)", _plain(written)) is not None
    return True


def _plain(text: str) -> str:
    """Return a text in lower case with single spaces, without separators of thousands, `$` and closing stop."""
    return re.sub(r"(?<=\d),(?=\d{3})|\$", "", " ".join(text.lower().split())).rstrip(".")


def with_rewritten_answers(prepared: ModelAndData, directory: Path) -> ModelAndData:
    """Return the model and data with training answers that the base model wrote.

    Args:
        prepared: Its training rows are prompts and completions, or conversations that end in an answer.
        directory: Folder of the run, where `rewritten.jsonl` is written.

    Raises:
        BALoraError: If the rows have no answers.
    """
    rows = prepared.train
    check_rewritable(rows)
    pairs = [_pair(row) for row in rows]
    model = prepared.load_model(on_device=True)
    records = rewrite(model, prepared.tokenizer, pairs, chat=are_chats(rows))
    if is_main_process():
        write_jsonl(directory / "rewritten.jsonl", records)

    def rewritten(row: dict[str, Any], index: int) -> dict[str, Any]:
        if not records[index]["used"]:
            return {}
        text = records[index]["written"]
        if "messages" not in row:
            lead = row["completion"][: len(row["completion"]) - len(row["completion"].lstrip())]
            return {"completion": lead + text}
        return {"messages": [*row["messages"][:-1], {**row["messages"][-1], "content": text}]}

    return replace(prepared, train=rows.map(rewritten, with_indices=True, features=rows.features))


def check_rewritable(rows: Dataset | IterableDataset) -> None:
    """Check that rows have answers to rewrite.

    Raises:
        BALoraError: If they have none.
    """
    first = next(iter(rows), {})
    messages = first.get("messages") or [{}]
    if isinstance(first.get("completion"), str) or (messages[-1].get("role") == "assistant" and len(messages) > 1):
        return
    raise BALoraError(
        "rewrite_answers: only prompts with completions, and conversations that end in an answer, have answers to "
        "rewrite; leave it out"
    )


def _pair(row: dict[str, Any]) -> tuple[list[dict[str, str]], str, str]:
    """Return what stands before the last instruction (messages), the instruction, and its answer."""
    if "messages" not in row:
        return [], row["prompt"].strip(), row["completion"].strip()
    *before, asked, answered = row["messages"]
    return before, asked.get("content") or "", answered.get("content") or ""


def rewrite(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[tuple[list[dict[str, str]], str, str]],
    *,
    chat: bool,
) -> list[dict[str, Any]]:
    """Have the model rewrite answers greedily, or read from the cache what it wrote.

    Args:
        model: The pretrained model.
        tokenizer: The model's.
        pairs: Messages before the instruction, instruction and answer of each row.
        chat: Whether the request goes through the chat template.

    Returns:
        For each row `instruction`, `answer`, `written` (null where there was no room) and `used`.
    """
    start, _ = added_tokens(tokenizer)  # the tokenizer adds it again
    prompts = []
    for before, instruction, answer in pairs:
        text = REQUEST.format(instruction=instruction, answer=answer)
        if chat:
            turns = [*before, {"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        prompts.append(text.removeprefix(start))
    file = cache_folder() / "rewritten" / f"{weights_digest(model, prompts)}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):  # a second run of the study waits, and reads what the first wrote
        records = [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []
        for first in tracked(range(len(records), len(pairs), BATCH_SIZE), "rewriting answers"):
            chunk = slice(first, first + BATCH_SIZE)
            written = _write(model, tokenizer, prompts[chunk], [answer for *_, answer in pairs[chunk]])
            for (_, instruction, answer), text in zip(pairs[chunk], written, strict=True):
                used = text is not None and bool(instruction and answer) and keeps_answer(text, answer)
                records.append({"instruction": instruction, "answer": answer, "written": text, "used": used})
            write_jsonl(file, records)
    return records


def _write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], answers: list[str]
) -> list[str | None]:
    """Return what the model writes, `None` where request and answer do not fit its context or no end was found.

    An answer may take twice the tokens of the longest reference answer among the prompts, and 16 more.
    """
    lengths = [[len(tokenizer(text, verbose=False)["input_ids"]) for text in texts] for texts in (prompts, answers)]
    room = 2 * max(lengths[1]) + 16
    context = context_length(model.config, tokenizer)
    fit = [row for row, length in enumerate(lengths[0]) if context is None or length + room <= context]
    written: list[str | None] = [None] * len(prompts)
    if fit:
        how = {"max_new_tokens": room, "batch_size": BATCH_SIZE}
        texts = generate_completions(model, tokenizer, [prompts[row] for row in fit], **how)
        for row, text in zip(fit, texts, strict=True):
            ended = len(tokenizer(text, verbose=False, add_special_tokens=False)["input_ids"]) < room
            written[row] = text.strip() if ended else None
    return written
