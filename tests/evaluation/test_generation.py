"""Greedy completions in batches, against one token at a time."""

import pytest
import torch
from tiny_models import make, word_tokenizer

from balora import BALoraConfig, get_balora_model
from balora.errors import BALoraError
from balora.evaluation.generation import generate_completions

PROMPTS = ["Once upon a time, there was", "One day", "Lily and Tom went to the park. They saw a big", "The"]


@torch.no_grad()
def one_at_a_time(model, tokenizer, prompt: str, tokens: int) -> str:
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    for _ in range(tokens):
        following = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if following == tokenizer.eos_token_id:
            break
        ids = [*ids, following]
    return tokenizer.decode(ids[start:])


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_completions_are_greedy_for_any_batch(model, tokenizer, batch_size):
    expected = [one_at_a_time(model, tokenizer, prompt, 24) for prompt in PROMPTS]
    assert len(set(expected)) == len(PROMPTS)
    settings = (tokenizer.padding_side, tokenizer.pad_token, tokenizer.model_max_length)
    model.generation_config.update(repetition_penalty=1.5, do_sample=True, temperature=3.0, max_length=30)
    model.train()
    model.model.norm.training = False  # a part that is kept in evaluation mode
    assert generate_completions(model, tokenizer, PROMPTS, max_new_tokens=24, batch_size=batch_size) == expected
    assert (tokenizer.padding_side, tokenizer.pad_token, tokenizer.model_max_length) == settings
    assert model.training
    assert not model.model.norm.training


def test_a_text_ends_where_the_model_ends_it_or_before_the_first_stop(model, tokenizer):
    whole = generate_completions(model, tokenizer, PROMPTS, max_new_tokens=60, batch_size=4)
    steps = []
    model.register_forward_hook(lambda *_: steps.append(1))
    stopped = generate_completions(model, tokenizer, PROMPTS, max_new_tokens=60, batch_size=4, stop=[".", " She"])
    assert stopped == [text.split(".")[0].split(" She")[0] for text in whole]
    assert all("." in text for text in whole)
    assert len(steps) < 60
    full_stop = tokenizer(".", add_special_tokens=False)["input_ids"][-1]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, full_stop]
    ended = generate_completions(model, tokenizer, PROMPTS, max_new_tokens=60, batch_size=4)
    assert ended == [text.split(".")[0] + "." for text in whole]


def test_an_adapted_model_writes_as_its_base_until_it_is_trained(model, tokenizer):
    expected = generate_completions(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=2)
    adapted = get_balora_model(
        model, BALoraConfig(method="lora+reg", r=4, lora_dropout=0.5, target_modules="all-linear")
    )
    adapted.train()
    assert generate_completions(adapted, tokenizer, PROMPTS, max_new_tokens=12, batch_size=2) == expected


def test_batches_without_a_padding_token_equal_single_prompts():
    tokenizer, model = word_tokenizer(closes=False), make("gpt2")
    tokenizer.pad_token = None
    prompts = ["a b a b a b", "b", "a a"]
    alone = [generate_completions(model, tokenizer, [p], max_new_tokens=8, batch_size=1)[0] for p in prompts]
    assert generate_completions(model, tokenizer, prompts, max_new_tokens=8, batch_size=3) == alone
    assert tokenizer.pad_token is None


def test_prompts_that_cannot_be_completed_are_named(model, tokenizer):
    with pytest.raises(BALoraError, match=r"prompt 2: \d+ tokens and max_new_tokens 500 are beyond .* of 512"):
        generate_completions(model, tokenizer, ["One", "word " * 20], max_new_tokens=500, batch_size=2)
    with pytest.raises(BALoraError, match="prompt 1: has no tokens"):
        generate_completions(make("gpt2"), word_tokenizer(closes=False), [""], max_new_tokens=5, batch_size=2)
    assert generate_completions(model, tokenizer, [], max_new_tokens=5, batch_size=2) == []
