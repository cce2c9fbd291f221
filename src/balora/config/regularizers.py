"""Settings of the regularizers: declared once, with their text, for `BALoraConfig` and for recipes."""

from dataclasses import dataclass
from typing import Annotated, Literal

from balora.config.ranges import Count, NonNegative, Positive, Range, Share, Weight

Schedule = Literal["constant", "cosine", "two_phase"]


@dataclass
class Regularizers:
    """Regularizers added to the task loss. A value of null is the method's or, for the model's task, the published."""

    # Consistency, diversity and spectral term on the outputs (BA-LoRA)

    consistency_weight: Weight | None = None
    """λ1, weight of the divergence from the pretrained model; null as published (0.025 generation, 0.15
    classification) with ba-lora and +reg, else 0."""
    diversity_weight: Weight | None = None
    """λ2, weight of the diversity term; null as published (0.005, 0.03) with ba-lora and +reg, else 0."""
    spectral_weight: Weight | None = None
    """λ3, weight of the leading share of the logits' spectrum; null as published (0.005, 0.03) with ba-lora and +reg,
    else 0."""
    temperature: Positive = 2.0
    """T of the consistency term."""
    consistency_direction: Literal["forward", "reverse"] = "forward"
    """`forward` is KL(teacher ‖ student), `reverse` KL(student ‖ teacher)."""
    diversity_loss: Literal["covariance", "entropy"] | None = None
    """What λ2 weighs: `covariance` of the class logits, or `entropy` among the top K; null by task. Generation has
    entropy alone, since a covariance would be vocabulary × vocabulary."""
    top_k: Count = 20
    """K of the entropy term."""
    spectral_k: Count | None = None
    """k of the spectral term; null as published (10, 5)."""
    clip_spectral_k: bool = True
    """In classification, use at most k = classes − 1. With k ≥ classes, as printed for GLUE, the term is −1 whatever
    the logits and trains nothing."""
    gather_batch_terms: bool = False
    """On several processes, take the covariance and the spectral term of the rows of all of them, as one process with
    the whole batch would; otherwise each uses its own rows (`docs/scale.md`). All other terms are means over tokens
    and the same either way."""
    consistency_schedule: Schedule | None = None
    """λ1 over training: `constant`; `cosine`, from full to 0; `two_phase`, 0 until the warm-up ends, then a linear
    ramp to full; null as published."""
    diversity_schedule: Schedule | None = None
    """λ2 over training, as consistency_schedule."""
    spectral_schedule: Schedule | None = None
    """λ3 over training, as consistency_schedule."""
    two_phase_warmup: Annotated[float, Range(least=0, most=1)] = 0.2
    """Share of training for which `two_phase` stays at 0."""
    two_phase_ramp: Annotated[float, Range(least=0, most=1)] = 0.05
    """Share of training over which `two_phase` then rises to full."""
    sample_rate: Share = 1.0
    """Share of the sequences that the teacher sees (generation), drawn at random and weighted by 1/sample_rate: the
    same gradient on average, for that share of the teacher's cost."""
    task_loss: Literal["cross_entropy", "dft"] = "cross_entropy"
    """Loss of the labels in generation: `cross_entropy`, or `dft`, where each token's is weighted by its probability
    (dynamic fine-tuning)."""
    regularized_tokens: Literal["all", "labelled"] = "all"
    """Tokens that the terms on the outputs see in generation: `all` but padding, or those that the task loss sees."""
    fused_lm_head: bool = True
    """Compute the generation objective from hidden states, in one pass over the LM head, without ever holding all
    logits. Training forwards then return no logits. A model whose head is not supported trains on logits, with a
    warning."""
    teacher_cache_mb: NonNegative = 512
    """Memory for the teacher's features, which are computed once for each example in classification and once for each
    anchor in generation; beyond it they are read from a memory-mapped file. In generation, rows that training reads
    more than once are kept too, as many as fit. 0 runs the teacher in every step."""

    # Self-anchors and the counterfactual teacher (in none of the papers)

    anchor_weight: Weight | None = None
    """λ of self-anchors, the divergence from the pretrained model on text that it generated before training
    (`balora.anchors`), for causal language models; null is 1 with +anchors, else 0."""
    anchor_share: Positive = 0.5
    """Anchors, and replayed texts, in a step for each sequence of the task's batch, rounded, at least one."""
    anchor_every: Count = 1
    """n: anchors are read in every n-th optimizer step, weighted by n, for an n-th of their cost; 1 is every step."""
    replay_weight: Weight = 0.0
    """λ of the cross-entropy on the same texts, drawn as anchors are: self-generated replay, without a teacher."""
    ewc_weight: Weight = 0.0
    """λ of elastic weight consolidation, ½·Σ F·ΔW² with F the Fisher information of texts per token, for causal
    language models; 0 is off."""
    counterfactual_words: str | None = None
    """Words that the teacher is averaged over, so that it prefers none of a group: an attribute of
    `balora.counterfactual.WORD_LISTS` (gender, religion, nationality), or a file with one group a line (`he, she`).
    Each further member of a group is one more teacher pass; null is gender with +swaps, else the plain teacher."""

    # Bias path and multi-task alignment (structural regularization)

    bias_path_weight: Weight = 0.0
    """λ of the bias path, ‖f(x + b) − f(x)‖² with b added to the input embeddings and f the final representation
    (`balora.adapters.bias_path`): one more forward pass of the student; 0 is off."""
    bias_path_mode: Literal["adversarial", "minimised", "counterfactual"] = "adversarial"
    """What b is. `adversarial`: on a sphere, trained against the adapter by gradient reversal. `minimised`: free and
    minimised too, as printed; it goes to 0. `counterfactual`: set by `BALoraModel.set_bias_direction`, not trained."""
    bias_path_radius: Positive = 0.1
    """ε, the length of b (`minimised`: at the start), as a share of the root mean square length of the input
    embeddings. No value is published."""
    bias_path_sample_rate: Share = 1.0
    """Share of the rows that make the second pass, drawn at random and weighted by its inverse."""
    bias_path_reduction: Literal["mean", "sum"] = "mean"
    """`mean` divides the squared norm by the width, so that models of any width weigh the same; `sum` is as
    printed."""
    task_names: list[str] | None = None
    """Names of several tasks, each with a LoRA adapter of its own, which `task_ids` picks for every row of a batch
    (`balora.adapters.task_adapters`); null for one adapter. In a recipe [primary, auxiliary]."""
    alignment_weight: Weight = 0.0
    """λ of `balora.losses.alignment_loss` between the tasks' adapters, a mean over the adapted layers; 0 is off. No
    value is published."""

    # Semantic loss (SeLoRA)

    semantic_weight: Weight | None = None
    """With selora, λ of `balora.losses.semantic_loss`, a mean over the adapted layers. No value is published; null is
    0.5 (`docs/decisions/selora.md`)."""
    semantic_min_similarity: Annotated[float, Range(least=-1, most=1)] | None = 0.0
    """With selora, the smallest cosine at which a pair of sentences counts; null for all pairs, as printed: sentences
    of opposite meaning are then pushed apart, without bound."""
    semantic_reduction: Literal["mean", "sum"] = "mean"
    """With selora, `mean` over the pairs, so that micro-batches of any size weigh the same, or their `sum`, as
    printed."""
