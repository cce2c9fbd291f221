"""One conversation and its chat template: the rendered text, its tokens, and where each turn is in them."""

import json
import re
import warnings
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl.data_utils import common_prefix_length

from balora.data.special_tokens import IGNORED

Messages = list[dict[str, Any]]


class ChatError(ValueError):
    """Error of a row that its template renders."""


class Chat:
    """One conversation and its chat template.

    Args:
        row: With `messages`, or with `prompt` and `completion`; perhaps with `tools` and `chat_template_kwargs`.
        tokenizer: The model's tokenizer.
    """

    def __init__(self, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.tools = json.loads(row.get("tools") or "null")
        self.arguments = json.loads(row.get("chat_template_kwargs") or "{}")
        self.template = tokenizer.get_chat_template(self.arguments.get("chat_template"), tools=self.tools)
        self.given = [*(row.get("prompt") or []), *(row.get("completion") or row.get("messages") or [])]
        self.messages = [self._as_read(message) for message in self.given]
        if any("tool_calls" in message for message in self.messages):
            try:
                self.render(self.messages)
            except TypeError:  # some templates, such as DeepSeek's, concatenate arguments as JSON text
                self.messages = [_with_text_arguments(message) for message in self.messages]
        self.prompt = self.messages[: len(row["prompt"])] if "prompt" in row else None

    def _as_read(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return the message as the template reads it: a developer's is a system's in templates without that role."""
        message = {key: value for key, value in message.items() if key != "weight" and value is not None}
        if message["role"] == "developer" and not self._reads("developer"):
            message["role"] = "system"
        return message

    def _reads(self, name: str) -> bool:
        return re.search(rf"\b{re.escape(name)}\b", self.template) is not None

    def render(self, messages: Messages, **settings: Any) -> Any:
        """Apply the template; to text, unless the settings say otherwise."""
        settings = {"tokenize": False, "tools": self.tools, **self.arguments, **settings}
        return self.tokenizer.apply_chat_template(messages, **settings)

    def unread(self) -> set[str]:
        """Return the keys of messages and of the row that the template does not read."""
        keys = {key for message in self.messages for key in message if key not in ("role", "content")}
        keys |= {*self.arguments} - {"chat_template"}
        return {key for key in keys if not self._reads(key)}

    def check(self) -> None:
        """Check that the template renders the conversation, and that no message, call or tool is missing in it."""
        if self.prompt:
            self.render(self.prompt, add_generation_prompt=True)
        text = self.render(self.messages)
        for name, has in (("tools", self.tools), ("tool_calls", any("tool_calls" in m for m in self.messages))):
            if has and not self._reads(name):
                raise ChatError(f"the chat template does not read {name!r}; give another as chat_template_path")
        contents = [message["content"].strip() for message in self.messages]
        for number, (message, content) in enumerate(zip(self.messages, contents, strict=True), start=1):
            escaped = json.dumps(content, ensure_ascii=False)[1:-1]  # as templates write the results of tools
            rendered = max(text.count(content), text.count(escaped)) >= contents.count(content)
            if not rendered and "</think>" not in content:  # templates may drop what the model thought
                raise ChatError(
                    f"the chat template leaves message {number} out (role {message['role']}); correct the row, or "
                    "give another template as chat_template_path"
                )

    def tokens(self, assistant_only_loss: bool, completion_only_loss: bool) -> dict[str, list[int]]:
        """Return `input_ids` and `labels`."""
        masked = self.prompt is None and assistant_only_loss and self._marks_generation()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output = self.render(self.messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=masked)
        ids = output["input_ids"]
        learned = [bool(bit) for bit in output["assistant_masks"]] if masked else [True] * len(ids)
        if self.prompt is not None and completion_only_loss:
            prompt = self.render(self.prompt, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
            start = common_prefix_length(prompt, ids)
            learned[:start] = [False] * start
        spans = self.trained_text(assistant_only_loss)
        if spans is not None:
            chosen = self._tokens_in(spans, ids)
            learned = [one and other for one, other in zip(learned, chosen, strict=True)]
        if not any(learned):
            raise ChatError("none of its tokens counts in the loss; leave the row out")
        return {"input_ids": ids, "labels": [i if one else IGNORED for i, one in zip(ids, learned, strict=True)]}

    def trained_text(self, assistant_only_loss: bool) -> list[tuple[int, int]] | None:
        """Return the parts of the rendered text that may count in the loss; `None` if that is all or marked text.

        Raises:
            ChatError: If nothing counts, or the template renders turns otherwise once others follow.
        """
        first = 0 if self.prompt is None else len(self.prompt)
        numbers = range(first, len(self.messages))
        roles = [self.given[number]["role"] for number in numbers]
        unweighted = [number for number in numbers if self.given[number].get("weight") == 0]
        if assistant_only_loss and "assistant" not in roles:
            raise ChatError(
                "it has no message of the assistant to learn; leave the row out, or set assistant_only_loss: false"
            )
        simple = self.prompt is not None and {*roles} == {"assistant"}  # completions are told apart by their prompt
        marked = self.prompt is None and self._marks_generation()
        if not unweighted and (not assistant_only_loss or simple or marked):
            return None
        text = self.render(self.messages)
        if not assistant_only_loss:
            return _outside([self._turn(number, text) for number in unweighted], len(text))
        learned = [n for n in numbers if self.given[n]["role"] == "assistant" and n not in unweighted]
        if not learned:
            raise ChatError("every message of the assistant has weight 0; leave the row out")
        return [self._turn(number, text) for number in learned]

    def _marks_generation(self) -> bool:
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.template) is not None

    def _turn(self, number: int, text: str) -> tuple[int, int]:
        """Return where in the text a message's turn begins, behind what prompts it, and where it ends.

        Args:
            number: Index of the message.
            text: The rendered conversation.

        Raises:
            ChatError: If the template renders the turn otherwise once others follow it.
        """
        message, earlier = self.messages[number], self.messages[:number]
        content = message["content"].strip()
        start = 0
        if earlier:
            prompted = self.render(earlier, add_generation_prompt=message["role"] == "assistant")
            start = common_prefix_length(prompted, text)
            if start < len(self.render(earlier).rstrip()):
                raise self._rendered_otherwise(number)
        through = self.render([*earlier, message])
        end = common_prefix_length(through, text)
        if end > start and (end >= len(through.rstrip()) or (content and content in text[start:end])):
            return start, end
        # Templates that leave earlier reasoning out: the content must follow, and then what ends a turn.
        behind = len(text) - len(text[start:].lstrip())
        if content and "tool_calls" not in message and text.startswith(content, behind):
            end = behind + len(content)
            whole = self.render([*earlier, {"role": message["role"], "content": content}])
            closing = whole[whole.rindex(content) + len(content) :].rstrip() if content in whole else ""
            return start, end + len(closing) if text.startswith(closing, end) else end
        raise self._rendered_otherwise(number)

    def _rendered_otherwise(self, number: int) -> ChatError:
        return ChatError(
            f"the chat template renders message {number + 1} or those before it otherwise once others follow, so its "
            "tokens cannot be told apart; give a template with {% generation %} as chat_template_path (TRL has some "
            "in trl/chat_templates), or set assistant_only_loss: false"
        )

    def _tokens_in(self, spans: list[tuple[int, int]], ids: list[int]) -> list[bool]:
        """Return whether each token belongs to one of the parts of the rendered text."""
        text = self.render(self.messages)

        def place(end: int) -> int:
            before = self.tokenizer(text[:end], add_special_tokens=False, verbose=False)["input_ids"]
            return common_prefix_length(before, ids)

        chosen = [False] * len(ids)
        for start, end in spans:
            first, last = place(start), place(end)
            chosen[first:last] = [True] * (last - first)
        return chosen


def _with_text_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose tool calls' arguments are JSON text."""
    calls = [{**call, "function": {**call.get("function", {})}} for call in message.get("tool_calls", [])]
    for call in calls:
        if isinstance(call["function"].get("arguments"), dict):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return {**message, "tool_calls": calls} if calls else message


def _outside(spans: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Return the parts of a text of this length that are outside the spans, which are in order."""
    edges = [0, *(edge for span in spans for edge in span), length]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if end > start]
