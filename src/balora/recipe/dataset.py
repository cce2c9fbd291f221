"""Settings of the dataset made of the rows: questions, a mixture of two tasks, streaming, lengths."""

from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from balora.anchors import COUNT, LENGTH
from balora.config.ranges import Count, Range, Seed
from balora.data.perturbation import KINDS
from balora.errors import BALoraError
from balora.recipe.paths import RecipePath
from balora.recipe.rows import Rows, refuse_alternatives

#: Names of the two tasks of a mixture.
MIXED_TASKS = ("primary", "auxiliary")
#: Settings that an auxiliary task has for itself.
AUXILIARY_SETTINGS = tuple(f.name for f in fields(Rows))


@dataclass
class Dataset:
    """The dataset: questions, mixtures, streaming, numbers and lengths of rows."""

    qa_format: Literal["hotpotqa", "squad"] | None = None
    """Read rows as questions with contexts, in this schema. Answers are scored by exact match and F1."""
    gold_context: bool = False
    """Of a context longer than max_length, keep supporting sentences before all others."""
    perturbation_kinds: list[str] = field(default_factory=list)
    """Ways to rephrase the evaluation's questions: synonym, paraphrase, word_order, distractor. Each is scored too."""
    perturbation_strengths: list[Annotated[float, Range(least=0, most=1)]] = field(
        default_factory=lambda: [0.25, 0.5, 0.75, 1.0]
    )
    """Shares of the places of a question that are changed."""
    auxiliary: dict = field(default_factory=dict)
    """A second task, mixed into the training rows and evaluated beside the first: its settings about rows; what it
    leaves out is the default. Its rows may be plain text where the first task's are prompts and completions, to replay
    what the model was pretrained on (`{train_file: "world:pretraining.jsonl"}` in the controlled world)."""
    mixture_ratio: list[float] = field(default_factory=lambda: [1, 1])
    """Training rows of the primary task to those of the auxiliary, such as [90, 10]."""
    rewrite_answers: bool = False
    """Have the base model rewrite the training answers first, and train on those that say the same (SDFT), else on the
    original. What it wrote is kept, and read again by other runs."""
    swapped_rows: str | None = None
    """Words to exchange in a copy of each training row that has one, added to the rows (counterfactual data
    augmentation): a list or a file as for counterfactual_words. null adds none."""
    streaming: bool = False
    """Read training rows as they are needed, for datasets larger than memory; needs max_steps."""
    shuffle_buffer_size: Count = 10_000
    """With streaming, rows that are shuffled with one another at a time."""
    max_train_samples: Count | None = None
    """Number of training rows to use; null for all."""
    max_eval_samples: Count | None = None
    """Number of evaluation rows to use; null for all."""
    subset_seed: Seed | None = None
    """Seed of max_train_samples, max_eval_samples, class_ratio, time_frequency, mixture_ratio and validation_share;
    with null the first two take the first rows."""
    max_length: int | None = None
    """Cut rows to this many tokens; null cuts nothing and stops at a row beyond the model's context."""
    assistant_only_loss: bool | None = None
    """Of conversations, train on the assistant's messages alone; false trains on every message. null is true."""
    max_target_length: int | None = None
    """Cut what a sequence-to-sequence model is to generate to this many tokens."""

    def check_dataset(self) -> None:
        """Validate questions, mixture and the numbers that belong to them.

        Raises:
            BALoraError: Naming the setting that is wrong.
        """
        for kind in self.perturbation_kinds:
            if kind not in KINDS:
                raise BALoraError(f"perturbation_kinds: unknown {kind!r}; there are {', '.join(KINDS)}")
        for key in self.auxiliary:
            if key not in AUXILIARY_SETTINGS:
                raise BALoraError(
                    f"auxiliary: {key!r} is not a setting about rows; it takes {', '.join(AUXILIARY_SETTINGS)}"
                )
        refuse_alternatives(self.auxiliary, "auxiliary: ")
        if self.auxiliary and self.qa_format is not None:
            raise BALoraError(
                "auxiliary: questions with contexts cannot be mixed with other rows; leave qa_format out"
            )
        if len(self.mixture_ratio) != len(MIXED_TASKS):
            raise BALoraError(
                f"mixture_ratio: {self.mixture_ratio} has {len(self.mixture_ratio)} numbers; give two, the primary "
                "task's and the auxiliary's"
            )


@dataclass
class AnchorTexts:
    """The texts of self-anchors."""

    anchor_samples: Count = COUNT
    """Texts that the model generates as self-anchors."""
    anchor_length: int = LENGTH
    """Length of the self-anchors in tokens."""
    anchor_file: RecipePath | None = None
    """Texts of your own instead of generated ones, a file as for perplexity_file."""
    anchor_column: str = "text"
    """Text column of anchor_file."""
