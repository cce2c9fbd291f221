"""Read OpenAssistant's trees as conversations, and split them so that no tree or text is on both sides."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from datasets import Dataset, Features, Value

from balora.data.columns import column_values
from balora.data.oasst_trees import Message, comparison_key, load_oasst_trees, walk
from balora.errors import BALoraError

OASST_FEATURES = Features(
    {
        "messages": [{"role": Value("string"), "content": Value("string")}],
        "language": Value("string"),
        "quality": Value("float64"),
        "rank": Value("int64"),
        "tree": Value("string"),
        "created_date": Value("string"),
    }
)
#: The roles of chat templates for the published ones.
CHAT_ROLES = {"prompter": "user", "assistant": "assistant"}


def oasst_conversations(
    source: str,
    *,
    split: str | None = None,
    languages: Sequence[str] | None = None,
    min_quality: float | None = None,
    max_rank: int | None = None,
    deleted: bool = False,
    failed_review: bool = False,
    synthetic: bool = False,
) -> Dataset:
    """Read OASST1 as conversations that end with a reply of the assistant, one per path through a tree.

    A filter drops messages together with all replies to them, so that a conversation ends earlier. Empty messages are
    always dropped. Of conversations that differ only in case, white space and Unicode composition, within a tree or
    between trees, the first is kept.

    A row's quality is the lowest of its messages and its rank the highest of its replies, `None` if one of them has
    none. A reply without a rank has rank 0 if it is the only one.

    Args:
        source: See `balora.data.oasst_trees.load_oasst_trees`.
        split: Split of the Hub dataset.
        languages: Tags such as `en`, one of which every message must have; `None` for all.
        min_quality: Lowest `quality` label of every message, from 0 to 1; a message without the label is dropped.
            `None` for no bound.
        max_rank: Highest rank of the assistant's replies among their siblings, 0 for the best only; a reply of unknown
            rank is dropped. `None` for no bound.
        deleted: Whether to keep deleted messages.
        failed_review: Whether to keep messages that were reviewed and rejected (`review_result` false).
        synthetic: Whether to keep messages written by a model.

    Returns:
        Columns of `OASST_FEATURES`: `messages` in TRL's form, with roles `user` and `assistant` and normalized text;
        `language` and id (`tree`) of the first message, `created_date` of the last. Trees are in the file's order;
        within a tree, better ranked replies come first.

    Raises:
        BALoraError: If a setting is out of range, the source is invalid, no message has one of the languages, or no
            conversation is left.
    """
    if min_quality is not None and not 0 <= min_quality <= 1:
        raise BALoraError(f"min_quality: {min_quality} is out of range; use a number from 0 to 1")
    if max_rank is not None and max_rank < 0:
        raise BALoraError(f"max_rank: {max_rank} is negative; use 0 for the best replies only, or more")
    prompts = load_oasst_trees(source, split=split)
    if languages is not None:
        _check_languages(languages, prompts, source)

    def stays(message: Message) -> bool:
        good_enough = min_quality is None or (message.quality is not None and message.quality >= min_quality)
        high_enough = max_rank is None or (message.rank is not None and message.rank <= max_rank)
        return (
            message.text != ""
            and (languages is None or message.language in languages)
            and good_enough
            and (high_enough or message.role == "prompter")
            and (deleted or not message.deleted)
            and (failed_review or not message.failed_review)
            and (synthetic or not message.synthetic)
        )

    rows = {}
    for prompt in prompts:
        for path in _conversations(prompt, stays):
            key = tuple(comparison_key(message.text) for message in path)
            rows.setdefault(key, _row(path))
    if not rows:
        raise BALoraError(f"{source}: no conversation with a reply is left after filtering; loosen a filter")
    return Dataset.from_list(list(rows.values()), features=OASST_FEATURES)


def split_oasst(
    rows: Dataset, *, validation_share: float, seed: int, source: str = "OASST1"
) -> tuple[Dataset, Dataset]:
    """Split conversations into training and validation rows by tree, so that no text is in both.

    Trees with the same prompt, or the same reply of the assistant anywhere in them, form a group, also if other trees
    connect them; case and white space are ignored. Later turns of the prompter ("Thank you!") connect no trees. Groups
    come in a random order that depends on the seed and their ids but not on the order of the rows, and each goes to
    validation if it fits in the rest of the share.

    Args:
        rows: From `oasst_conversations`.
        validation_share: Share of the trees, between 0 and 1; rounded, with at least one tree on either side.
        seed: Seed of the order of groups.
        source: File or Hub name of the rows, for errors.

    Returns:
        Training and validation rows, each in their order.

    Raises:
        BALoraError: If the share is out of range, or every group of trees is larger than it.
    """
    if not 0 < validation_share < 1:
        raise BALoraError(f"validation_share: {validation_share} is out of range; use a share between 0 and 1")
    trees = column_values(rows, "tree", source=source)
    groups = _groups(trees, column_values(rows, "messages", source=source))
    count = sum(map(len, groups))
    wanted = min(max(1, round(validation_share * count)), count - 1)
    validation: set[str] = set()
    for group in sorted(groups, key=lambda group: random.Random(f"{seed} {min(group)}").random()):
        if len(validation) + len(group) <= wanted:
            validation |= group
    if not validation:
        raise BALoraError(
            f"{source}: validation_share {validation_share} is {wanted} of {count} trees, and the smallest group that "
            f"shares no text with others has {min(map(len, groups))}; use a larger share or more trees"
        )
    train_rows, validation_rows = (
        [i for i, tree in enumerate(trees) if (tree in validation) is side] for side in (False, True)
    )
    return rows.select(train_rows), rows.select(validation_rows)


def _check_languages(languages: Sequence[str], prompts: list[Message], source: str) -> None:
    found = {message.language for prompt in prompts for message in walk(prompt)} - {None}
    unknown = next((language for language in languages if language not in found), None)
    if unknown is not None:
        raise BALoraError(
            f"{source}: languages names {unknown!r}, which no message has; there are {', '.join(sorted(found))}"
        )


def _conversations(prompt: Message, stays: Callable[[Message], bool]) -> Iterator[list[Message]]:
    """Yield the paths from a tree's prompt to a last reply of the assistant, the best ranked first."""

    def replies(message: Message) -> list[Message]:
        kept = filter(stays, message.replies)
        return sorted(kept, key=lambda reply: (reply.rank is None, reply.rank))

    waiting = [[prompt, reply] for reply in reversed(replies(prompt))] if stays(prompt) else []
    while waiting:
        path = waiting.pop()
        longer = [[*path, question, reply] for question in replies(path[-1]) for reply in replies(question)]
        if not longer:
            yield path
        waiting.extend(reversed(longer))


def _row(path: list[Message]) -> dict[str, Any]:
    qualities = [message.quality for message in path]
    ranks = [message.rank for message in path[1::2]]
    return {
        "messages": [{"role": CHAT_ROLES[message.role], "content": message.text} for message in path],
        "language": path[0].language,
        "quality": None if None in qualities else min(qualities),
        "rank": None if None in ranks else max(ranks),
        "tree": path[0].message_id,
        "created_date": path[-1].created_date,
    }


def _groups(trees: list[str], conversations: list[list[dict[str, str]]]) -> list[set[str]]:
    """Return the groups of trees that share a prompt or a reply, directly or through other trees."""
    holders = defaultdict(set)  # the trees with each text
    for tree, messages in zip(trees, conversations, strict=True):
        for number, message in enumerate(messages):
            if number == 0 or message["role"] == "assistant":
                holders[message["role"], comparison_key(message["content"])].add(tree)
    groups = {tree: {tree} for tree in trees}
    for shared in holders.values():
        if len(shared) > 1:
            joined = set().union(*(groups[tree] for tree in shared))
            groups |= dict.fromkeys(joined, joined)
    return list({id(group): group for group in groups.values()}.values())
