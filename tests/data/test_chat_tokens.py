"""Which tokens of a conversation count in the loss, and what a chat template must render."""

import json
import warnings
from pathlib import Path

import pytest
import trl
from bad_inputs import complaint
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from balora.data import to_causal_lm_rows
from balora.data.chat import Chat
from balora.data.chat_tokens import check_chats, tokenize_chats, turn_end

WORDS = ["<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "system", "user", "assistant", "tool", "developer"]
WORDS += ["hi", "hello", "bye", "kind", "be", "think", "{", "}", "call", "sun", "weather", ":"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|> ' + m.role + ' ' + m.content + ' <|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|> assistant ' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|> ' + m.role + ' ' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + ' <|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + ' <|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|> assistant ' }}{% endif %}"
)
#: Renders the reasoning of the last turn alone, as Qwen3's does.
FORGETS = CHATML.replace("m.content +", "(('think ' if loop.last and m.role == 'assistant' else '') + m.content) +")
WITH_TOOLS = (
    "{% if tools %}{{ tools[0].name + '\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|> ' + m.role + ' ' }}"
    "{% if m.reasoning_content %}{{ 'think ' + m.reasoning_content + ' ' }}{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ ' call { ' + c.function.arguments.place + ' }' }}{% endfor %}"
    "{{ ' <|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|> assistant ' }}{% endif %}"
)
CHAT = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "be kind"},
    {"role": "assistant", "content": "bye"},
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"place": "sun"}'}}


def tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    special = {"unk_token": "<unk>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, chat_template=template, **special)


def rows_of(*chats: list, **columns: list) -> Dataset:
    return to_causal_lm_rows(
        Dataset.from_dict({"messages": [*chats], **columns}, on_mixed_types="use_json"), source="x"
    )


def learned(rows: Dataset, template: str = CHATML, **settings) -> list[str]:
    """Return the words of each row that count in the loss."""
    tokens = tokenizer(template)
    check_chats(rows, tokens, source="train rows", assistant_only_loss=settings.get("assistant_only_loss", True))
    found = tokenize_chats(rows, tokens, source="train rows", **settings)
    assert found.column_names == ["input_ids", "labels"]
    return [tokens.decode([i for i in labels if i != -100]) for labels in found["labels"]]


@pytest.mark.parametrize("template", [CHATML, MARKED, FORGETS])
def test_of_messages_the_assistants_count_alone(template):
    last = "think bye" if template == FORGETS else "bye"
    assert learned(rows_of(CHAT), template) == [f"hello <|im_end|> {last} <|im_end|>"]


#: Published templates, and the text that counts of each turn.
PUBLISHED = {
    "qwen2_5": ["hello<|im_end|>\n", "bye<|im_end|>\n"],
    "qwen3": ["hello<|im_end|>", "<think>\n\n</think>\n\nbye<|im_end|>\n"],
    "llama3_1": ["hello<|eot_id|>", "bye<|eot_id|>"],
    "gemma3": ["hello<end_of_turn>\n", "bye<end_of_turn>\n"],
    "deepseek_r1_distill": ["hello<｜end▁of▁sentence｜>", "bye<｜end▁of▁sentence｜>"],
    "cohere": ["hello<|END_OF_TURN_TOKEN|>", "bye<|END_OF_TURN_TOKEN|>"],
}


def published(name: str) -> PreTrainedTokenizerFast:
    tokens = tokenizer((Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text())
    tokens.bos_token = "<|endoftext|>"
    return tokens


@pytest.mark.parametrize("name", PUBLISHED)
def test_turns_of_published_templates_are_found(name):
    chat = Chat(rows_of(CHAT)[0], published(name))
    chat.check()
    text = chat.render(chat.messages)
    assert [text[start:end] for start, end in chat.trained_text(True)] == PUBLISHED[name]


def test_arguments_are_text_for_templates_that_concatenate_them():
    calls = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    row = rows_of([CHAT[0], calls, {"role": "tool", "content": "sun"}, CHAT[3]])[0]
    chat = Chat(row, published("deepseekv3"))
    assert '```json\n{"place": "sun"}\n```' in chat.render(chat.messages)
    chat.check()


def test_all_messages_count_on_request():
    whole = tokenizer().apply_chat_template(CHAT, tokenize=False).replace("\n", " ").strip()
    assert learned(rows_of(CHAT), assistant_only_loss=False) == [whole]


@pytest.mark.parametrize("template", [CHATML, MARKED])
@pytest.mark.parametrize("only", [True, False])
def test_a_weight_of_zero_is_honoured(template, only):
    chat = [CHAT[0], {**CHAT[1], "weight": 0}, CHAT[2], {**CHAT[3], "weight": 1}]
    words = learned(rows_of(chat), template, assistant_only_loss=only)
    rest = "<|im_start|> user hi <|im_end|> <|im_start|> assistant <|im_start|> user be kind <|im_end|> <|im_start|> "
    assert words == ["bye <|im_end|>" if only else f"{rest}assistant bye <|im_end|>"]


@pytest.mark.parametrize("assistant_only_loss", [True, False])
def test_prompts_and_completions_are_tokenized_as_trl_does(tmp_path, assistant_only_loss):
    rows = to_causal_lm_rows(Dataset.from_dict({"prompt": [CHAT[:3]], "completion": [CHAT[3:]]}), source="x")
    assert learned(rows, assistant_only_loss=assistant_only_loss) == ["bye <|im_end|>"]
    ours = tokenize_chats(rows, tokenizer(), source="x", assistant_only_loss=assistant_only_loss)
    assert ours[:] == prepared_by_trl(rows, tmp_path)


def test_all_messages_are_tokenized_as_trl_does(tmp_path):
    ours = tokenize_chats(rows_of(CHAT), tokenizer(), source="x", assistant_only_loss=False)
    assert ours[:] == prepared_by_trl(rows_of(CHAT), tmp_path)


def prepared_by_trl(rows: Dataset, tmp_path) -> dict:
    arguments = SFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", max_length=None)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), **shape))
    found = SFTTrainer(model, args=arguments, train_dataset=rows, processing_class=tokenizer()).train_dataset
    return found.select_columns(["input_ids", "labels"])[:]


def test_a_completion_of_several_messages_counts_where_the_assistant_speaks():
    rows = to_causal_lm_rows(Dataset.from_dict({"prompt": [CHAT[:1]], "completion": [CHAT[1:]]}), source="x")
    assert learned(rows) == ["hello <|im_end|> bye <|im_end|>"]
    assert learned(rows, MARKED) == ["hello <|im_end|> bye <|im_end|>"]


def test_tools_their_calls_and_reasoning_reach_the_template():
    calls = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    answer = {"role": "assistant", "content": "bye", "reasoning_content": "kind"}
    chat = [CHAT[0], calls, {"role": "tool", "content": "sun"}, answer]
    rows = rows_of(chat, CHAT, tools=[[{"name": "weather"}], None])
    assert rows[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"place": "sun"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        words = learned(rows, WITH_TOOLS)
    assert words == [
        "call { sun } <|im_end|> think kind bye <|im_end|>",
        "hello <|im_end|> bye <|im_end|>",
    ]
    whole = tokenize_chats(rows, tokenizer(WITH_TOOLS), source="x")["input_ids"]
    assert [ids[0] == WORDS.index("weather") for ids in whole] == [True, False]


def test_template_arguments_reach_the_template():
    template = "{% if loud %}{{ 'sun ' }}{% endif %}" + CHATML
    rows = rows_of(CHAT, CHAT, chat_template_kwargs=[{"loud": True}, '{"loud": false}'])
    ids = tokenize_chats(rows, tokenizer(template), source="x")["input_ids"]
    assert [row[0] == WORDS.index("sun") for row in ids] == [True, False]


def test_what_the_template_does_not_read_is_named():
    chat = [CHAT[0], {**CHAT[1], "reasoning_content": "kind", "id": 7}]
    rows = rows_of(chat, chat_template_kwargs=[{"loud": True}])
    with pytest.warns(
        UserWarning, match="train rows: the chat template does not read id, loud, reasoning_content, which"
    ):
        check_chats(rows, tokenizer(), source="train rows")
    calling = rows_of([CHAT[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}])
    assert complaint(lambda: check_chats(calling, tokenizer(), source="x"), "does not read 'tool_calls'")
    tools = rows_of(CHAT, tools=[json.dumps([{"name": "weather"}])])
    assert complaint(lambda: check_chats(tools, tokenizer(), source="x"), "does not read 'tools'")


def test_a_developer_is_a_system_where_the_template_has_no_developer():
    rows = rows_of([{"role": "developer", "content": "be kind"}, *CHAT])
    only_system = CHATML.replace("m.role +", "('system' if m.role == 'system' else m.role) +")
    for template, role in ((CHATML, "system"), (only_system, "system"), (CHATML + "{# developer #}", "developer")):
        ids = tokenize_chats(rows, tokenizer(template), source="x")[0]["input_ids"]
        assert WORDS[ids[1]] == role


@pytest.mark.parametrize(
    ("chat", "template", "message"),
    [
        (CHAT[:1], CHATML, "row 1: it has no message of the assistant to learn"),
        ([CHAT[0], {**CHAT[1], "weight": 0}], CHATML, "row 1: every message of the assistant has weight 0"),
        (
            [{"role": "system", "content": "be kind"}, *CHAT],
            CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"),
            "row 1: the chat template leaves message 1 out (role system)",
        ),
        (
            [*CHAT[:3], CHAT[3]],
            CHATML.replace("{% for m", "{{ messages | length }} {% for m"),
            "row 1: the chat template renders message 2 or those before it otherwise",
        ),
    ],
)
def test_rows_that_cannot_be_learned_are_named(chat, template, message):
    assert complaint(
        lambda: check_chats(rows_of(chat), tokenizer(template), source="train rows"), f"train rows, {message}"
    )


def test_the_end_of_a_turn_is_found():
    assert turn_end(tokenizer()) == WORDS.index("<|im_end|>")
    assert turn_end(tokenizer("{% for m in messages %}{{ m.content + ' <|endoftext|>' }}{% endfor %}")) == 1
    assert turn_end(tokenizer("{% for m in messages %}{{ m.content + '\n' }}{% endfor %}")) is None
    assert turn_end(tokenizer("{{ raise_exception('no') }}")) is None
    with pytest.warns(UserWarning, match="ends a turn with '###', which is no special token of the tokenizer"):
        assert turn_end(tokenizer("{% for m in messages %}{{ m.content + ' ###' }}{% endfor %}")) is None
