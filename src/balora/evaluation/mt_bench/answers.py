"""A model as what answers a chat: its own chat template, and the temperatures at which MT-Bench asks.

Those are FastChat's: 0.7 for writing and roleplay, 0.1 for STEM and humanities, greedy for the rest, 1024 new tokens.
"""

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.evaluation.mt_bench.questions import Answer, Conversation, Question, answer_question
from balora.utils.lengths import context_length
from balora.utils.modules import evaluation_mode

#: By category; 0 is greedy.
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
#: Of a category that MT-Bench does not have.
OTHER_TEMPERATURE = 0.7


def answer_questions(
    questions: Iterable[Question],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int = 1024,
    seed: int = 0,
) -> list[Conversation]:
    """Put every question to a model, at its category's temperature.

    Args:
        questions: From `read_questions`.
        model: A causal language model, adapted or not; left in the mode it was in.
        tokenizer: The model's, with a chat template.
        max_new_tokens: Longest answer.
        seed: Of sampling, set anew for each question, so that no answer depends on which others are asked. The
            caller's random state stays as it was.

    Raises:
        BALoraError: If the tokenizer has no chat template.
    """
    conversations = []
    for question in questions:
        temperature = TEMPERATURES.get(question.category, OTHER_TEMPERATURE)
        answer = chat_answer(model, tokenizer, temperature=temperature, max_new_tokens=max_new_tokens)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            conversations.append(answer_question(question, answer))
    return conversations


def chat_answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    temperature: float = 0.0,
    max_new_tokens: int = 1024,
) -> Answer:
    """A model as a function from messages to its answer.

    Args:
        model: A causal language model; left in the mode it was in.
        tokenizer: The model's, with a chat template.
        temperature: 0 for greedy decoding. The model's own generation settings hold for the rest (`top_p` and so on).
        max_new_tokens: Longest answer; shorter where the context ends first, and empty where nothing is left of it.

    Raises:
        BALoraError: If the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise BALoraError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template, which MT-Bench needs; use that of a "
            "chat model, or set tokenizer.chat_template"
        )
    context = context_length(model.config, tokenizer)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}

    @torch.no_grad()
    def answer(messages: list[dict[str, str]]) -> str:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(model.device)
        length = inputs["input_ids"].shape[1]
        room = max_new_tokens if context is None else min(max_new_tokens, context - length)
        if room < 1:
            return ""
        with evaluation_mode(model):
            # Limits that a model's own generation settings may hold would stand beside ours.
            written = model.generate(
                **inputs, max_new_tokens=room, max_length=None, min_length=0, num_beams=1, **sampling
            )  # (1, length + T)
        return tokenizer.decode(written[0, length:], skip_special_tokens=True).strip()

    return answer
