"""The file of replies: one line each, written as it comes, so that a run that broke off goes on where it was.

A line is what the judge said and what it said it of: question, turn, judge, and a digest of the request.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from balora.errors import BALoraError
from balora.evaluation.mt_bench.completion import Reply
from balora.evaluation.mt_bench.cost import Usage

#: Question id, turn, judge's model, digest.
Key = tuple[int, int, str, str]
#: How every line begins, so that a line cut short is told from a file that is something else.
BEGINNING = b'{"question_id": '


def digest(messages: list[dict[str, str]], options: Mapping[str, Any]) -> str:
    """Of all that the judge is sent, the answer among it: another answer, prompt or temperature is another request."""
    return hashlib.sha256(json.dumps([messages, dict(options)], sort_keys=True).encode()).hexdigest()


def read_replies(file: Path) -> dict[Key, list[Reply]]:
    """What a file holds, in the order in which it came; nothing if there is no file.

    A last line without its end was being written when the run broke off, and is taken out of the file.

    Raises:
        BALoraError: If the file holds anything else; it is then left as it is.
    """
    content = file.read_bytes() if file.exists() else b""
    *lines, rest = content.split(b"\n")
    replies: defaultdict[Key, list[Reply]] = defaultdict(list)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            usage = row["usage"] and Usage(**row["usage"])
            reply = Reply(row["reply"], usage, row["served_model"], row["finish_reason"])
            replies[row["question_id"], row["turn"], row["judge"], row["digest"]].append(reply)
        except (ValueError, LookupError, TypeError) as error:
            raise _not_ours(file, number) from error
    if rest:
        if not (rest.startswith(BEGINNING) or BEGINNING.startswith(rest)):
            raise _not_ours(file, len(lines) + 1)
        os.truncate(file, len(content) - len(rest))
    return dict(replies)


def append_reply(file: Path, key: Key, reply: Reply) -> None:
    """Add a line, by one write, on the disk when this returns. The folder is made if absent."""
    question_id, turn, judge, digest = key
    row = {
        "question_id": question_id,
        "turn": turn,
        "judge": judge,
        "digest": digest,
        "reply": reply.text,
        "usage": reply.usage and asdict(reply.usage),
        "served_model": reply.served_model,
        "finish_reason": reply.finish_reason,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab", buffering=0) as lines:
        lines.write(json.dumps(row).encode() + b"\n")
        os.fsync(lines.fileno())


def _not_ours(file: Path, number: int) -> BALoraError:
    return BALoraError(f"{file}, line {number}: is no judge's reply; name another file for them, or take the line out")
