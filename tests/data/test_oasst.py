"""OASST1: three published forms are one set, filters against a naive reading, no leak between the sides of a split.

And one error for each broken message.
"""

import gzip
import json
import random
import unicodedata

import pytest
from datasets import Dataset, Features, Value
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st

from balora.data import load_table, oasst_conversations, split_oasst, to_causal_lm_rows
from balora.data.oasst import OASST_FEATURES
from balora.data.oasst_trees import comparison_key, normalize_text
from balora.errors import BALoraError

few = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

#: The Hub's columns, as its dataset card declares them.
HUB_FEATURES = Features(
    {
        **dict.fromkeys(
            ["message_id", "parent_id", "user_id", "created_date", "text", "role", "lang"], Value("string")
        ),
        "review_count": Value("int32"),
        **dict.fromkeys(["review_result", "deleted", "synthetic"], Value("bool")),
        "rank": Value("int32"),
        "model_name": Value("string"),
        "message_tree_id": Value("string"),
        "tree_state": Value("string"),
        "emojis": {"name": [Value("string")], "count": [Value("int32")]},
        "labels": {"name": [Value("string")], "value": [Value("float64")], "count": [Value("int32")]},
    }
)


def message(message_id, text, *replies, quality=0.75, **fields):
    """Build a message as in the file of trees; `tree` adds the roles."""
    labels = {"spam": {"value": 0.0, "count": 3}, "quality": {"value": quality, "count": 3}}
    return {
        "message_id": message_id,
        "user_id": "u1",
        "created_date": f"2023-02-05T14:23:50.983374+00:00#{message_id}",
        "text": text,
        "lang": "en",
        "review_count": 3,
        "review_result": True,
        "deleted": False,
        "synthetic": False,
        "emojis": {"+1": 1, f"_{message_id}": 2},
        "labels": labels if quality is not None else {},
        **fields,
        "replies": list(replies),
    }


def tree(prompt):
    def cast(node, role):
        node.setdefault("role", role)
        for reply in node["replies"]:
            cast(reply, "assistant" if role == "prompter" else "prompter")

    cast(prompt, "prompter")
    return {"message_tree_id": prompt["message_id"], "tree_state": "ready_for_export", "prompt": prompt}


def flat(trees):
    """Return the same messages one by one, as in the file of messages."""
    found = []

    def visit(node, parent, known):
        own = {name: value for name, value in node.items() if name != "replies"}
        found.append({**own, "parent_id": parent, **known})
        for reply in node["replies"]:
            visit(reply, node["message_id"], known)

    for one in trees:
        visit(one["prompt"], None, {name: one[name] for name in ("message_tree_id", "tree_state")})
    return found


def on_hub(messages):
    def listed(values):
        return {
            "name": list(values),
            "value": [v["value"] for v in values.values()],
            "count": [v["count"] for v in values.values()],
        }

    rows = [
        {
            **dict.fromkeys(HUB_FEATURES),
            **row,
            "labels": listed(row["labels"]),
            "emojis": {"name": list(row["emojis"]), "count": list(row["emojis"].values())},
        }
        for row in messages
    ]
    return Dataset.from_list([{name: row[name] for name in HUB_FEATURES} for row in rows], features=HUB_FEATURES)


def write(path, objects):
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in objects)
    return str(path)


def conversations(tmp_path, trees, **options):
    return oasst_conversations(write(tmp_path / "a.trees.jsonl", trees), **options)


def texts(rows):
    return [[m["content"] for m in messages] for messages in rows["messages"]]


def one_tree():
    """Build a prompt with two ranked replies; the better one has three follow-ups, one without an answer."""
    good = message(
        "a1",
        "Low tide.",
        message("p2", "Why?", message("a3", "The moon.", message("p4", "Thanks!")), quality=0.5),
        message("p3", "When?", message("a4", "At six.", rank=1), message("a5", "At noon.", rank=0)),
        rank=0,
    )
    return tree(message("p1", "Tell me of tides.", message("a2", "No.", rank=1, quality=0.25), good))


THREADS = [  # of `one_tree`: better ranked replies first
    ["Tell me of tides.", "Low tide.", "Why?", "The moon."],
    ["Tell me of tides.", "Low tide.", "When?", "At noon."],
    ["Tell me of tides.", "Low tide.", "When?", "At six."],
    ["Tell me of tides.", "No."],
]


def test_the_three_published_forms_are_the_same_rows(tmp_path):
    trees = [one_tree(), tree(message("q1", "Hello", message("b1", "Hi")))]
    nested = oasst_conversations(write(tmp_path / "a.trees.jsonl.gz", trees))
    assert nested.features == OASST_FEATURES
    assert texts(nested) == [*THREADS, ["Hello", "Hi"]]
    assert nested["quality"][:] == [0.5, 0.75, 0.75, 0.25, 0.75]
    assert nested["rank"][:] == [0, 0, 1, 1, 0]  # an only reply is the best
    assert nested["tree"][:] == ["p1"] * 4 + ["q1"]
    assert [date.split("#")[1] for date in nested["created_date"]] == ["a3", "a5", "a4", "a2", "b1"]
    assert set(nested["language"]) == {"en"}

    messages = flat(trees)
    assert oasst_conversations(write(tmp_path / "a.messages.jsonl", messages)).to_list() == nested.to_list()
    on_hub(messages).to_parquet(tmp_path / "hub.parquet")
    assert "name" in load_table(str(tmp_path / "hub.parquet"))[0]["labels"]
    assert oasst_conversations(str(tmp_path / "hub.parquet")).to_list() == nested.to_list()


def test_replies_may_come_before_their_parents(tmp_path):
    messages = flat([one_tree()])
    rows = oasst_conversations(write(tmp_path / "a.jsonl", messages[::-1]))
    assert sorted(texts(rows)) == sorted(THREADS)


def test_the_smallest_messages_of_the_schema(tmp_path):
    bare = {"message_id": "p", "text": "One?", "role": "prompter", "lang": "en"}
    bare["replies"] = [{"message_id": "a", "text": "Two.", "role": "assistant", "lang": "en", "replies": []}]
    rows = conversations(tmp_path, [{"message_tree_id": "p", "tree_state": "ready_for_export", "prompt": bare}])
    assert rows.to_list() == [
        {
            "messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}],
            "language": "en",
            "quality": None,
            "rank": 0,
            "tree": "p",
            "created_date": None,
        }
    ]


def test_the_rows_are_conversations_for_a_causal_language_model(tmp_path):
    rows = conversations(tmp_path, [one_tree()])
    assert to_causal_lm_rows(rows, source="OASST1")["messages"][:] == rows["messages"][:]


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"max_rank": 0}, THREADS[:2]),
        ({"max_rank": 1}, THREADS),
        ({"min_quality": 0.5}, THREADS[:3]),
        ({"min_quality": 0.6}, THREADS[1:3]),
        ({"languages": ["en"]}, THREADS),
    ],
)
def test_filters(tmp_path, options, left):
    assert texts(conversations(tmp_path, [one_tree()], **options)) == left


@pytest.mark.parametrize(
    ("field", "bad", "option"),
    [("deleted", True, "deleted"), ("review_result", False, "failed_review"), ("synthetic", True, "synthetic")],
)
def test_dropping_a_message_drops_its_replies(tmp_path, field, bad, option):
    trees = [one_tree()]
    trees[0]["prompt"]["replies"][1]["replies"][0][field] = bad  # p2
    short = ["Tell me of tides.", "No."]
    assert texts(conversations(tmp_path, trees)) == [*THREADS[1:3], short]
    assert texts(conversations(tmp_path, trees, **{option: True})) == THREADS
    trees[0]["prompt"]["replies"][1]["replies"][1][field] = bad  # and p3: what is left ends with their parent
    assert texts(conversations(tmp_path, trees)) == [["Tell me of tides.", "Low tide."], short]


def test_messages_of_unknown_quality_or_rank_are_dropped_by_bounds(tmp_path):
    unranked = tree(message("p", "One?", message("a", "Two."), message("b", "Three.", rank=0), quality=None))
    assert conversations(tmp_path, [unranked])["rank"][:] == [0, None]
    assert texts(conversations(tmp_path, [unranked], max_rank=5)) == [["One?", "Three."]]
    assert conversations(tmp_path, [unranked])["quality"][:] == [None, None]
    with pytest.raises(BALoraError, match="no conversation"):
        conversations(tmp_path, [unranked], min_quality=0)


def test_blank_messages_are_dropped(tmp_path):
    blank = tree(message("p", "One?", message("a", " \n ", message("q", "Two?", message("b", "Three.")))))
    assert texts(conversations(tmp_path, [blank, one_tree()])) == THREADS


def test_duplicates_are_dropped_within_and_across_trees(tmp_path):
    one = tree(message("p1", "Caf\u00e9?", message("a1", "Yes,  please."), message("a2", "yes, please.")))
    other = tree(message("p2", "cafe\u0301?\r\n", message("b1", "YES, PLEASE."), message("b2", "No.")))
    rows = conversations(tmp_path, [one, other])
    assert texts(rows) == [["Caf\u00e9?", "Yes, please."], ["caf\u00e9?", "No."]]
    assert rows["tree"][:] == ["p1", "p2"]


WORDS = st.sampled_from(["one", "two", "three", "One", "four  five"])


@st.composite
def forests(draw):
    """Draw a few random trees with many equal texts."""
    ids = iter(range(10**6))

    def node(depth):
        replies = [node(depth - 1) for _ in range(draw(st.integers(0, 2)) if depth else 0)]
        return message(
            f"m{next(ids)}",
            draw(WORDS),
            *replies,
            quality=draw(st.sampled_from([None, 0.25, 0.5, 1.0])),
            rank=draw(st.sampled_from([None, 0, 1, 2])),
            deleted=draw(st.sampled_from([False, False, False, True])),
            lang=draw(st.sampled_from(["en", "en", "pt-BR"])),
        )

    return [tree(node(3)) for _ in range(draw(st.integers(1, 4)))]


def naive(trees, languages, min_quality, max_rank):
    """List the conversations as all paths from a prompt that are not part of a longer one."""

    def is_in(node, siblings):
        quality = (node["labels"].get("quality") or {}).get("value")
        rank = 0 if node["rank"] is None and siblings == 1 else node["rank"]
        return (
            not node["deleted"]
            and (languages is None or node["lang"] in languages)
            and (min_quality is None or (quality is not None and quality >= min_quality))
            and (max_rank is None or node["role"] == "prompter" or (rank is not None and rank <= max_rank))
        )

    def paths(node, siblings):
        if not is_in(node, siblings):
            return []
        below = [path for reply in node["replies"] for path in paths(reply, len(node["replies"]))]
        return [[node], *([node, *path] for path in below)]

    found = set()
    for one in trees:
        ended = [path for path in paths(one["prompt"], 1) if path[-1]["role"] == "assistant"]
        ids = [[node["message_id"] for node in path] for path in ended]
        longest = [
            path
            for path, own in zip(ended, ids, strict=True)
            if not any(len(i) > len(own) and i[: len(own)] == own for i in ids)
        ]
        found |= {tuple(" ".join(node["text"].lower().split()) for node in path) for path in longest}
    return found


@few
@given(
    trees=forests(),
    languages=st.sampled_from([None, ["en"]]),
    min_quality=st.sampled_from([None, 0.0, 0.5]),
    max_rank=st.sampled_from([None, 0, 1]),
)
def test_conversations_are_those_of_a_naive_reading(tmp_path, trees, languages, min_quality, max_rank):
    if languages and all(row["lang"] != "en" for row in flat(trees)):
        languages = None
    expected = naive(trees, languages, min_quality, max_rank)
    options = {"languages": languages, "min_quality": min_quality, "max_rank": max_rank}
    if not expected:
        with pytest.raises(BALoraError, match="no conversation"):
            conversations(tmp_path, trees, **options)
        return
    rows = conversations(tmp_path, trees, **options)
    found = [tuple(comparison_key(text) for text in one) for one in texts(rows)]
    assert len(set(found)) == len(found)  # none twice
    assert set(found) == expected
    assert min_quality is None or min(rows["quality"]) >= min_quality
    assert max_rank is None or max(rows["rank"]) <= max_rank
    for messages in rows["messages"]:
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)


def kept_apart(rows):
    """Return the trees, prompts and replies, none of which may be on both sides."""
    found = {("tree", name) for name in rows["tree"]}
    for messages in rows["messages"]:
        found.add(("user", " ".join(messages[0]["content"].lower().split())))
        found |= {("assistant", " ".join(m["content"].lower().split())) for m in messages if m["role"] == "assistant"}
    return found


def rows_of_trees(seed):
    """Draw trees of one or two conversations, some of which share a prompt or a reply."""
    draws = random.Random(seed)
    rows = []
    for number in range(draws.randint(2, 15)):
        prompt = draws.choice([f"prompt {number}"] * 4 + ["Hello", "hello "])
        for reply in range(draws.randint(1, 2)):
            answer = draws.choice([f"answer {number} {reply}"] * 6 + ["You're welcome", "Yes"])
            contents = [prompt, answer, "Thank you!", f"last {number} {reply}"]
            roles = ["user", "assistant"] * 2
            messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
            rows.append({**dict.fromkeys(OASST_FEATURES), "messages": messages, "tree": f"t{number}"})
    return Dataset.from_list(rows, features=OASST_FEATURES)


@few
@given(st.integers(0, 10**6), st.floats(0.05, 0.95), st.integers(0, 99))
def test_a_split_shares_no_tree_and_no_text(drawn, share, seed):
    rows = rows_of_trees(drawn)
    trees = len(set(rows["tree"]))
    try:
        train, validation = split_oasst(rows, validation_share=share, seed=seed)
    except BALoraError:  # no group is small enough
        reject()
    assert not kept_apart(train) & kept_apart(validation)
    assert len(train) > 0
    assert 1 <= len(set(validation["tree"])) <= max(1, round(share * trees))
    assert sorted(map(str, [*train, *validation])) == sorted(map(str, rows))  # nothing lost, nothing new
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    again = split_oasst(rows.select(order), validation_share=share, seed=seed)
    assert set(again[1]["tree"]) == set(validation["tree"])  # whatever the order of the rows


def plain_rows(count):
    def row(i):
        messages = [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]
        return {**dict.fromkeys(OASST_FEATURES), "messages": messages, "tree": f"t{i}"}

    return Dataset.from_list([row(i) for i in range(count)], features=OASST_FEATURES)


def test_trees_without_common_text_are_split_exactly():
    train, validation = split_oasst(plain_rows(40), validation_share=0.25, seed=1)
    assert (len(train), len(validation)) == (30, 10)
    assert train["tree"][:] == sorted(train["tree"], key=lambda name: int(name[1:]))  # in their order
    other = split_oasst(plain_rows(40), validation_share=0.25, seed=2)[1]
    assert set(other["tree"]) != set(validation["tree"])


@pytest.mark.parametrize("share", [0, 1, -0.5, float("nan")])
def test_a_share_out_of_range_raises(share):
    with pytest.raises(BALoraError, match=r"validation_share: .* use a share between 0 and 1"):
        split_oasst(plain_rows(4), validation_share=share, seed=1)


@pytest.mark.parametrize(
    ("trees", "replies"), [(["t1"], ["Yes"]), (["t1", "t2"], ["Yes", "yes"]), (["a", "b", "c", "d"], list("xxyy"))]
)
def test_trees_that_cannot_be_split_raise(trees, replies):
    rows = [
        {**row, "tree": tree, "messages": [row["messages"][0], {"role": "assistant", "content": reply}]}
        for row, tree, reply in zip(plain_rows(len(trees)), trees, replies, strict=True)
    ]
    with pytest.raises(BALoraError, match=r"^OASST1: validation_share 0\.2 is \d of \d trees, and the smallest group"):
        split_oasst(Dataset.from_list(rows, features=OASST_FEATURES), validation_share=0.2, seed=1)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("cafe\u0301", "caf\u00e9"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("  a  b\t\tc \n\n\n\n  d  \n", "a b c\n\n  d"),
        ("a\u00a0\u00a0b", "a b"),
        ("ﬁ ²", "ﬁ ²"),
        ("Run:\n```python\nif x:\n    y  =  1  \n\n\n\nz\n```\n\n\nDone  now", None),
    ],
)
def test_normalization(text, normal):
    if normal is None:  # code keeps its white space, prose does not
        normal = "Run:\n```python\nif x:\n    y  =  1  \n\n\n\nz\n```\n\nDone now"
    assert normalize_text(text) == normal


@few
@given(st.text(st.sampled_from(" \n\r\t`ae\u0301\u00e9\u00a0X\u2028"), max_size=30) | st.text(max_size=30))
@example(" ```\n  ```  \n")
@example("a\n ``` ")
def test_normalization_is_idempotent_and_keeps_the_words(text):
    once = normalize_text(text)
    assert normalize_text(once) == once
    assert once.split() == unicodedata.normalize("NFC", text).split()
    assert comparison_key(text.upper()) == comparison_key(text.upper().lower().upper())


def broken(**changes):
    """Return the messages of a small tree with one of them changed."""
    messages = flat([tree(message("p", "One?", message("a", "Two.", message("q", "Three?"))))])
    messages[1].update(changes)
    return messages


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"role": "user"}, "'role': expected 'prompter' or 'assistant', found 'user'"),
        ({"role": ["assistant"]}, "'role': expected"),
        ({"role": None}, "'role': is missing"),
        ({"role": "prompter"}, "'role': 'prompter' replies to 'prompter'; the two take turns"),
        ({"text": None}, "'text': is missing"),
        ({"text": 3}, "'text': expected text, found 3"),
        ({"text": "\ud800"}, "'text': expected text, found"),
        ({"lang": 3}, "'lang': expected text"),
        ({"created_date": 3}, "'created_date': expected text"),
        ({"parent_id": "nobody"}, "'parent_id': no message has the id 'nobody'"),
        ({"parent_id": 7}, "'parent_id': expected text, found 7"),
        ({"parent_id": "a"}, "'parent_id': the message is its own ancestor"),
        ({"parent_id": None}, "'role': a tree begins with the prompter"),
        ({"message_tree_id": "t"}, "'message_tree_id': 't' is not the id of its tree's prompt, 'p'"),
        ({"rank": -1}, "'rank': expected a whole number from 0, found -1"),
        ({"rank": True}, "'rank': expected a whole number"),
        ({"rank": 0.5}, "'rank': expected a whole number"),
        ({"rank": 10**30}, "'rank': expected a whole number"),
        ({"deleted": "no"}, "'deleted': expected true or false, found 'no'"),
        ({"review_result": 1}, "'review_result': expected true or false"),
        ({"synthetic": "x"}, "'synthetic': expected true or false"),
        ({"labels": 3}, "'labels': expected {quality: .*, found 3"),
        ({"labels": {"quality": 0.5}}, "'labels': expected {quality: "),
        ({"labels": {"name": ["quality"], "value": []}}, "'labels': expected {quality: "),
        ({"labels": {"name": [["x"], "quality"], "value": [1, "y"]}}, "'labels': quality is from 0 to 1, not 'y'"),
        ({"labels": {"quality": {"value": 1.5}}}, "'labels': quality is from 0 to 1, not 1.5"),
        ({"labels": {"quality": {"value": float("nan")}}}, "'labels': quality is from 0 to 1, not nan"),
    ],
)
def test_a_broken_message_is_named_with_row_and_field(tmp_path, changes, problem):
    source = write(tmp_path / "a.messages.jsonl", broken(**changes))
    with pytest.raises(BALoraError, match=rf"^\S+a\.messages\.jsonl, row 2, message 'a', field {problem}"):
        oasst_conversations(source)


def test_a_cycle_raises_also_for_messages_below_it(tmp_path):
    messages = broken(parent_id="q")  # a replies to q replies to a
    messages.insert(1, {**messages[0], "message_id": "below", "parent_id": "q", "role": "assistant"})
    with pytest.raises(BALoraError, match=r"row 4, message 'q', field 'parent_id': the message is its own ancestor"):
        oasst_conversations(write(tmp_path / "a.jsonl", messages))


@pytest.mark.parametrize(
    ("objects", "problem"),
    [
        ([{"message_id": "p", "text": "a", "role": "prompter"}] * 2, "row 2, message 'p', field 'message_id': occurs"),
        ([{"message_id": 5, "text": "a", "role": "prompter"}], "row 1, field 'message_id': expected text, found 5"),
        ([{"thread_id": "t", "thread": []}], r"row 1: neither a message \(field 'message_id'\) nor a tree"),
        ([{"message_tree_id": "p", "prompt": None}], "row 1, field 'prompt': expected a message, found None"),
        ([], "no rows"),
    ],
)
def test_a_broken_file(tmp_path, objects, problem):
    source = write(tmp_path / "a.jsonl", objects)
    with pytest.raises(BALoraError, match=problem):
        oasst_conversations(source)


@pytest.mark.parametrize(
    ("replies", "problem"),
    [
        ({"x": 1}, r"'p', field 'replies': expected a list of messages"),
        (["Two."], r"'p', field 'replies': expected a message, found 'Two\.'"),
        (
            [{**message("a", "Two.", role="assistant"), "parent_id": "z"}],
            r"'a', field 'parent_id': 'z' is not",
        ),
        (
            [{**message("a", "Two."), "role": "prompter"}],
            r"'a', field 'role': 'prompter' replies to 'prompter'",
        ),
    ],
)
def test_a_broken_tree(tmp_path, replies, problem):
    broken_tree = tree(message("p", "One?"))
    broken_tree["prompt"]["replies"] = replies
    with pytest.raises(BALoraError, match=rf"^\S+a\.trees\.jsonl, row 2, message {problem}"):
        conversations(tmp_path, [one_tree() | {"message_tree_id": "p1"}, broken_tree])


def test_a_line_that_is_not_json(tmp_path):
    path = tmp_path / "a.trees.jsonl"
    path.write_text(json.dumps(one_tree()) + "\n{broken\n")
    with pytest.raises(BALoraError, match=r"a\.trees\.jsonl, line 2: not JSON"):
        oasst_conversations(str(path))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"min_quality": 2}, "min_quality: 2 is out of range"),
        ({"min_quality": float("nan")}, "min_quality: nan"),
        ({"max_rank": -1}, "max_rank: -1 is negative"),
        ({"languages": ["en", "english"]}, "languages names 'english', which no message has; there are en$"),
        ({"languages": []}, "no conversation with a reply is left"),
    ],
)
def test_settings_that_cannot_be_met_raise(tmp_path, options, problem):
    with pytest.raises(BALoraError, match=problem):
        conversations(tmp_path, [one_tree()], **options)
