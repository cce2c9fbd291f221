"""Question answering in a study: convert tables to questions, write prompts, perturb questions."""

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from balora.data import hotpotqa_rows, squad_rows, to_causal_lm_rows, to_qa_rows
from balora.data.perturbation import perturb
from balora.data.qa import CAUSAL_TEMPLATE, QA_FEATURES, SEQ2SEQ_TEMPLATE
from balora.recipe import Recipe

READERS = {"hotpotqa": hotpotqa_rows, "squad": squad_rows}
#: Largest number of tokens of an answer if the recipe sets none.
ANSWER_TOKENS = 32


def to_questions(recipe: Recipe, table: Dataset, source: str) -> Dataset:
    """Convert a table in the recipe's `qa_format` to rows of `QA_FEATURES`."""
    return READERS[recipe.qa_format](table, source=source)


def with_prompts(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, questions: Dataset, source: str, *, gold: bool = False
) -> Dataset:
    """Add a `prompt` that fits the recipe's `max_length`, and the answer as its `completion`.

    Args:
        recipe: The recipe; its `max_length` limits the prompt, for a causal model prompt and answer.
        tokenizer: The model's tokenizer.
        questions: Rows of `QA_FEATURES`.
        source: File or Hub name of the rows, for errors.
        gold: Choose supporting sentences before all others.
    """
    template, room = SEQ2SEQ_TEMPLATE, recipe.max_length
    if not recipe.is_seq2seq:
        template, room = CAUSAL_TEMPLATE, recipe.max_length - answer_tokens(recipe)
    rows = to_qa_rows(
        questions,
        source=source,
        max_tokens=room,
        count=lambda text: len(tokenizer(text, verbose=False)["input_ids"]),
        template=template,
        gold=gold,
    )
    if not recipe.is_seq2seq:
        rows = to_causal_lm_rows(rows, source=source)
    return concatenate_datasets([questions, rows], axis=1)


def answer_tokens(recipe: Recipe) -> int:
    """Return the largest number of tokens of an answer."""
    return recipe.max_target_length or ANSWER_TOKENS


def perturbed(questions: Dataset, kind: str, strength: float) -> Dataset:
    """Return the same rows with each question perturbed."""
    texts = [perturb(question, kind, strength, seed=0) for question in questions["question"][:]]
    columns = {name: questions[name][:] for name in QA_FEATURES}
    return Dataset.from_dict(columns | {"question": texts}, features=QA_FEATURES)
