"""`to_causal_lm_rows`: the columns TRL reads, recognised or named, and one clear error for each wrong row."""

import pytest
from datasets import Dataset
from trl.data_utils import is_conversational

from balora.data import load_table, to_causal_lm_rows
from balora.errors import BALoraError

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def rows_of(columns, **settings):
    table = Dataset.from_dict(columns, on_mixed_types="use_json")  # as files are read
    return to_causal_lm_rows(table, source="train.jsonl", **settings)


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("2+2=", "4", " 4"),
        ("2+2= ", "4", "4"),
        ("2+2=\n", "4", "4"),
        ("2+2=", "\n4", "\n4"),
        ("2+2=", " 4", " 4"),
    ],
)
def test_a_completion_never_runs_into_its_prompt(prompt, completion, expected):
    rows = rows_of({"prompt": [prompt], "completion": [completion], "id": [7]})
    assert rows.to_list() == [{"prompt": prompt, "completion": expected}]


def test_named_columns_and_template_on_real_rows(data_dir):
    table = load_table(str(data_dir / "gsm8k/test.jsonl"))
    rows = to_causal_lm_rows(
        table,
        source="test.jsonl",
        prompt_column="question",
        completion_column="answer",
        prompt_template="Question: {prompt}\nUse \\boxed{}.\nAnswer:",
    )
    assert rows.column_names == ["prompt", "completion"]
    assert len(rows) == 1319
    assert rows[0]["prompt"] == f"Question: {table[0]['question']}\nUse \\boxed{{}}.\nAnswer:"
    assert rows[0]["completion"] == f" {table[0]['answer']}"


def test_text_is_unchanged(data_dir):
    table = load_table(str(data_dir / "tinystories/tinystories_1000.json"))
    assert to_causal_lm_rows(table, source="stories").to_list() == table.to_list()


def test_messages_keep_only_role_and_content():
    rows = rows_of({"chat": [[{**message, "weight": 1} for message in CHAT]], "text": ["x"]}, messages_column="chat")
    assert rows.to_list() == [{"messages": CHAT}]
    assert is_conversational(rows[0])


@pytest.mark.parametrize(
    "messages",
    [
        [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
        [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, CHAT[1]],
        [{**CHAT[0], "name": None, "tool_calls": []}, {**CHAT[1], "tool_calls": None, "weight": 1}],
    ],
)
def test_common_forms_of_conversations_are_read(messages):
    for column in ("messages", "conversations"):
        assert rows_of({column: [messages]}).to_list() == [{"messages": CHAT}]
    table = {"conversations": [messages] * 2, "system": ["Be kind", " "]}
    system = {"role": "system", "content": "Be kind"}
    assert rows_of(table).to_list() == [{"messages": [system, *CHAT]}, {"messages": CHAT}]


def test_alpaca_rows_are_prompts_with_their_input():
    columns = {"instruction": ["Add", "Sing"], "input": ["2+2", ""], "output": ["4", "La"]}
    expected = [{"prompt": "Add\n\n2+2", "completion": " 4"}, {"prompt": "Sing", "completion": " La"}]
    assert rows_of(columns).to_list() == expected
    assert rows_of({**columns, "text": ["x", "y"]}).to_list() == [{"text": "x"}, {"text": "y"}]
    templated = rows_of(columns, prompt_template="Q: {prompt}\nA:")
    assert templated["prompt"][0] == "Q: Add\n\n2+2\nA:"


def test_prompt_and_completion_may_be_messages():
    rows = rows_of({"prompt": [CHAT[:1]], "completion": [CHAT[1:]]})
    assert rows.to_list() == [{"prompt": CHAT[:1], "completion": CHAT[1:]}]


def test_ambiguous_tables_are_settled_by_naming():
    columns = {"prompt": ["a"], "completion": ["b"], "text": ["c"]}
    with pytest.raises(
        BALoraError, match="more than one standard form among the columns 'prompt', 'completion', 'tex"
    ):
        rows_of(columns)
    assert rows_of(columns, text_column="text").to_list() == [{"text": "c"}]


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        (
            {"question": ["x"]},
            {},
            "train.jsonl: no standard form among the columns 'question'; a form is",
        ),
        ({"prompt": ["x"]}, {}, "no standard form among the columns 'prompt'"),
        ({"a": ["x"]}, {"prompt_column": "a"}, "prompt_column: not a standard form"),
        ({"a": ["x"]}, {"prompt_column": "a", "completion_column": "b"}, "no column 'b'; it has 'a'"),
        ({"text": ["x", None]}, {}, "train.jsonl, row 2, field 'text': is missing"),
        ({"text": ["x", " \n"]}, {}, "row 2, field 'text': is empty"),
        ({"text": [3]}, {}, "row 1, field 'text': expected text, found 3"),
        (
            {"q": ["x", "y"], "a": ["1", ""]},
            {"prompt_column": "q", "completion_column": "a"},
            "row 2, field 'a': is em",
        ),
        ({"text": []}, {}, "train.jsonl: no rows"),
        ({"text": ["x"]}, {"prompt_template": "{prompt}"}, "prompt_template is for prompts that are strings"),
        (
            {"prompt": ["x"], "completion": ["y"]},
            {"prompt_template": "Q:"},
            r"prompt_template: 'Q:' has no \{prompt\}",
        ),
        ({"prompt": [CHAT], "completion": ["y"]}, {}, "row 1, field 'completion': expected a list of messages"),
        ({"prompt": ["x"], "completion": [CHAT]}, {}, "row 1, field 'completion': expected text"),
        ({"messages": [CHAT, []]}, {}, "row 2, field 'messages': expected a list of messages, found \\[\\]"),
        ({"messages": [["x"]]}, {}, "message 1: expected an object with role and content, found 'x'"),
        (
            {"messages": [[{**CHAT[0], "weight": 0.5}]]},
            {},
            "message 1: weight must be 0 or 1, not 0.5",
        ),
        (
            {"messages": [[{"role": "user", "content": [{"type": "image", "url": "x"}]}]]},
            {},
            "message 1: content has a part of type 'image'; only text can be trained on",
        ),
        ({"messages": [CHAT], "tools": ["weather"]}, {}, "row 1, field 'tools': expected a list of tools, found 'wea"),
        (
            {"messages": [CHAT], "chat_template_kwargs": [["x"]]},
            {},
            "field 'chat_template_kwargs': expected an object of arguments",
        ),
        (
            {"messages": [[{"role": "assistant", "tool_calls": ["x"]}]]},
            {},
            "message 1: tool_calls must be a list",
        ),
        (
            {"conversations": [[{"from": "cat", "value": "x"}]]},
            {},
            "field 'conversations': message 1: role 'cat'",
        ),
        ({"conversations": [CHAT], "messages": [CHAT]}, {}, "more than one standard form among the columns 'conv"),
        (
            {"messages": [[*CHAT, {"role": "bot", "content": "x"}]]},
            {},
            "message 3: role 'bot' is unknown; use one of sy",
        ),
        ({"messages": [[{"role": "user"}]]}, {}, "message 1: content must be text, not None"),
    ],
)
def test_errors_name_the_row_and_field(columns, settings, message):
    with pytest.raises(BALoraError, match=message):
        rows_of(columns, **settings)


def test_values_of_mixed_types_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n{"text": ["y"]}\n')
    with pytest.raises(BALoraError, match=r"a\.jsonl, row 2, field 'text': expected text, found \['y'\]"):
        to_causal_lm_rows(load_table(str(path)), source=str(path))


@pytest.mark.parametrize("arguments", ['{"a": "\\ud800"}', '{"n": 18446744073709551616}', "[" * 3000, "x", "[1]"])
def test_arguments_that_are_no_object_or_fit_no_table_stay_text(arguments):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    rows = rows_of({"messages": [[CHAT[0], call], CHAT]})
    assert rows[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == arguments
