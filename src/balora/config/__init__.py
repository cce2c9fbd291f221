"""`BALoraConfig`: PEFT's `LoraConfig` plus the method that starts the adapter and the regularizers on its outputs."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from peft import LoraConfig
from transformers import BitsAndBytesConfig

from balora.config.checks import check_config, check_task, check_task_names, four_bit_settings
from balora.config.presets import FROM_DATA, METHODS, PUBLISHED, RESIDUAL, SELORA

__all__ = [
    "FROM_DATA",
    "METHODS",
    "PUBLISHED",
    "RESIDUAL",
    "SELORA",
    "BALoraConfig",
    "Schedule",
    "check_task_names",
    "four_bit_settings",
]

Schedule = Literal["constant", "cosine", "two_phase"]


@dataclass
class BALoraConfig(LoraConfig):
    """Configuration of a BA-LoRA model. Every field of PEFT's `LoraConfig` keeps its name and meaning.

    A mixture's experts are one parameter in Transformers, which `target_parameters` names
    (`mlp.experts.gate_up_proj`); each expert gets factors of its own.

    Fields left at `None` take the value the paper prints for the model's task (`balora.config.PUBLISHED`).

    Attributes:
        method: How the adapter starts: `lora`, `rslora`, `dora`, or `lora-fa`, which is LoRA with A frozen; from part
            of the weight: `pissa` from its principal components, `milora` from its minor ones, `olora` from its QR
            decomposition; from batches that `get_balora_model` is given: `lora-ga` from the leading directions of the
            loss's gradient (settings in PEFT's `lora_ga_config`), `corda` from the weight's components as the layer's
            inputs weigh them. `selora` starts as `lora`, and each row's sentence vector gates it, in every attention
            projection unless `target_modules` says otherwise (`balora.adapters.selora`).
        pissa_niter: `None` for PiSSA by exact SVD; a number for the fast randomized one with that many subspace
            iterations (PEFT's `pissa_niter_N`, seeded).
        corda_method: CorDA's mode, by PEFT's names: `ipm` adapts the leading components and wants batches of the task
            to learn; `kpm` adapts the trailing ones and wants batches of the knowledge to keep.
        seed: Seed of the randomized SVD (PiSSA's, LoRA-GA's) and of dropout while LoRA-GA's gradient is taken.
        quantization_config: Transformers' `BitsAndBytesConfig` with `load_in_4bit`, or its settings as a dict (which
            it becomes): for a base that was loaded in full precision, whose linear layers are quantized once a
            residual method has taken its part (QPiSSA). The teacher is then the function that the student starts
            from: the pretrained one up to the residual's rounding. A base that Transformers loaded in 4 bits needs no
            such setting, and is its own teacher.
        sentence_dim: For `selora`, the length of the sentence vectors, `sentence_embeds`, that forward and `generate`
            are given.
        gate: For `selora`: `shared`, one hidden layer that all adapted layers' gates read; `per_layer`, each its own.
        gate_hidden: Width of that hidden layer.
        semantic_weight: For `selora`, λ of `balora.losses.semantic_loss`, a mean over the adapted layers. No value is
            published; `null` is 0.5, ours (`docs/decisions/selora.md`).
        semantic_min_similarity: Pairs of sentences whose cosine is smaller do not count. `null` for all pairs, as
            printed: those that mean the opposite are then pushed apart, without bound.
        semantic_reduction: `mean` over the pairs, so that micro-batches of any size weigh the same, or their `sum`, as
            printed.
        bias_path_weight: λ of the bias path, ‖f(x + b) − f(x)‖² with b added to the input embeddings and f the final
            representation (`balora.adapters.bias_path`): one more forward pass of the student. 0 is off.
        bias_path_mode: What b is. `adversarial`: on a sphere, trained against the adapter by gradient reversal.
            `minimised`: free, and minimised too, as printed; it goes to 0. `counterfactual`: given by
            `BALoraModel.set_bias_direction` and not trained.
        bias_path_radius: ε, the length of b (`minimised`: at the start), as a share of the root mean square length of
            the input embeddings. No value is published.
        bias_path_sample_rate: Share of the rows that make the second pass, picked at random and weighted by its
            inverse.
        bias_path_reduction: `mean` divides the squared norm by the width, so that models of any width weigh the same;
            `sum` is as printed.
        task_names: For several tasks, their names: one LoRA adapter each, which `task_ids` picks for every row of a
            batch (`balora.adapters.task_adapters`). All start alike. `None` for one adapter.
        alignment_weight: λ of `balora.losses.alignment_loss` between the tasks' adapters, a mean over the adapted
            layers. No value is published. 0 is off.
        anchor_weight: λ of self-anchors, the divergence from the pretrained model on text that it wrote itself
            (`balora.anchors`), in causal language models. In none of the papers. 0 is off.
        anchor_share: Anchors in a step for each sequence of the task's batch, rounded, at least one: what they cost.
        counterfactual_words: What the teacher is averaged over, so that it prefers none: an attribute of
            `balora.counterfactual.WORD_LISTS` (gender, religion, nationality) or a file of one's own word groups. Each
            further member of a group is one more teacher pass. In none of the papers. `None` for the teacher as it is.
        consistency_weight: λ1, weight of the divergence from the pretrained model.
        diversity_weight: λ2, weight of the diversity term.
        diversity_loss: What that is: `covariance` of the class logits, or `entropy` among the top K. Generation has
            entropy alone, since a covariance would be vocabulary × vocabulary.
        spectral_weight: λ3, weight of the leading share of the logits' spectrum.
        temperature: T of the consistency term.
        consistency_direction: `forward` is KL(teacher ‖ student), `reverse` KL(student ‖ teacher).
        top_k: K of the entropy term.
        spectral_k: k of the spectral term.
        clip_spectral_k: In classification, take k as at most the number of classes − 1. With k ≥ classes, as printed
            for GLUE, the term is −1 whatever the logits and trains nothing.
        gather_batch_terms: On several processes, take the covariance and the spectral term of the rows of all of them,
            as one process with the whole batch would; otherwise each takes its own rows' (`docs/scale.md`). All other
            terms are means over tokens and the same either way.
        consistency_schedule: λ1 over training: `constant`; `cosine`, from full to 0; `two_phase`, 0 until the
            warm-up ends, then a linear ramp to full.
        diversity_schedule: The same for λ2.
        spectral_schedule: The same for λ3.
        two_phase_warmup: Share of training that `two_phase` stays at 0.
        two_phase_ramp: Share of training in which it then rises to full.
        sample_rate: Share of the sequences that the teacher sees (generation), picked at random and weighted by
            1/sample_rate: the same gradient on average, for that share of the teacher's cost.
        fused_lm_head: Compute the generation objective from hidden states, in one pass over the LM head, and never
            all logits at once. Training forwards then return no logits. Where a model's head is none that we know,
            training falls back to logits with a warning.
        teacher_cache_mb: Memory for the teacher's features in classification, computed once for each example; beyond
            it they are read from a memory-mapped file. 0 runs the teacher on every batch.

    Raises:
        BALoraError: If a value is out of range or a name unknown.
    """

    method: str = field(default="pissa", metadata={"help": f"How the adapter starts: {', '.join(METHODS)}."})
    pissa_niter: int | None = field(default=None, metadata={"help": "Iterations of the randomized SVD; null: exact."})
    corda_method: Literal["ipm", "kpm"] = field(
        default="ipm", metadata={"help": "CorDA adapts leading components (ipm) or trailing ones (kpm)."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the randomized SVD."})
    quantization_config: BitsAndBytesConfig | dict[str, Any] | None = field(
        default=None, metadata={"help": "4-bit settings for the base, after the adapter's start; null: as it is."}
    )
    sentence_dim: int | None = field(default=None, metadata={"help": "Length of selora's sentence vectors."})
    gate: Literal["shared", "per_layer"] = field(
        default="shared", metadata={"help": "Whether selora's gates share their hidden layer."}
    )
    gate_hidden: int = field(default=64, metadata={"help": "Width of the gates' hidden layer."})
    semantic_weight: float | None = field(default=None, metadata={"help": "λ of selora's semantic loss; null: 0.5."})
    semantic_min_similarity: float | None = field(
        default=0.0, metadata={"help": "Cosine from which a pair of sentences counts; null: all pairs."}
    )
    semantic_reduction: Literal["mean", "sum"] = field(
        default="mean", metadata={"help": "Mean or sum over the pairs of sentences."}
    )
    bias_path_weight: float = field(default=0.0, metadata={"help": "λ of the bias path; 0: off."})
    bias_path_mode: Literal["adversarial", "minimised", "counterfactual"] = field(
        default="adversarial", metadata={"help": "What the bias embedding is trained for, if at all."}
    )
    bias_path_radius: float = field(
        default=0.1, metadata={"help": "Length of the bias embedding, as a share of the input embeddings' own."}
    )
    bias_path_sample_rate: float = field(default=1.0, metadata={"help": "Share of the rows that the bias path takes."})
    bias_path_reduction: Literal["mean", "sum"] = field(
        default="mean", metadata={"help": "Mean or sum over the width of the bias path's squared differences."}
    )
    task_names: list[str] | None = field(
        default=None, metadata={"help": "Tasks that have an adapter each; null: one adapter."}
    )
    alignment_weight: float = field(default=0.0, metadata={"help": "λ of the tasks' alignment; 0: off."})
    anchor_weight: float = field(default=0.0, metadata={"help": "λ of self-anchors; 0: off."})
    anchor_share: float = field(default=0.5, metadata={"help": "Anchors in a step for each of the task's sequences."})
    counterfactual_words: str | None = field(
        default=None, metadata={"help": "Words that the teacher is averaged over: gender, religion, … or a file."}
    )
    consistency_weight: float | None = field(default=None, metadata={"help": "λ1; null: as published."})
    diversity_weight: float | None = field(default=None, metadata={"help": "λ2; null: as published."})
    diversity_loss: Literal["covariance", "entropy"] | None = field(
        default=None, metadata={"help": "What λ2 weighs; null: covariance of classes, entropy of tokens."}
    )
    spectral_weight: float | None = field(default=None, metadata={"help": "λ3; null: as published."})
    temperature: float = field(default=2.0, metadata={"help": "T of the consistency term."})
    consistency_direction: Literal["forward", "reverse"] = field(
        default="forward", metadata={"help": "KL(teacher ‖ student) or KL(student ‖ teacher)."}
    )
    top_k: int = field(default=20, metadata={"help": "K of the entropy term."})
    spectral_k: int | None = field(default=None, metadata={"help": "k of the spectral term; null: as published."})
    clip_spectral_k: bool = field(default=True, metadata={"help": "Keep k below the number of classes."})
    gather_batch_terms: bool = field(
        default=False, metadata={"help": "Covariance and spectral term of all processes' rows together."}
    )
    consistency_schedule: Schedule | None = field(default=None, metadata={"help": "λ1 over training."})
    diversity_schedule: Schedule | None = field(default=None, metadata={"help": "λ2 over training."})
    spectral_schedule: Schedule | None = field(default=None, metadata={"help": "λ3 over training."})
    two_phase_warmup: float = field(default=0.2, metadata={"help": "Share of training at weight 0."})
    two_phase_ramp: float = field(default=0.05, metadata={"help": "Share of training in which the weight rises."})
    sample_rate: float = field(default=1.0, metadata={"help": "Share of the sequences that the teacher sees."})
    fused_lm_head: bool = field(default=True, metadata={"help": "Losses from hidden states, without whole logits."})
    teacher_cache_mb: float = field(default=512, metadata={"help": "Memory for teacher features; 0: no cache."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_config(self)
        if self.quantization_config is not None:
            self.quantization_config = four_bit_settings(self.quantization_config)

    @property
    def residual(self) -> bool:
        """Whether the base weight loses what the adapter starts from."""
        return self.method in RESIDUAL

    def resolve(self, task_type: str) -> None:
        """Fill fields left at `None` with the published value for the task, in place.

        Raises:
            BALoraError: If the task has no regularizers defined.
        """
        check_task(self, task_type)
        self.task_type = task_type
        if self.semantic_weight is None:
            self.semantic_weight = 0.5 if self.method == SELORA else 0.0
        for name, value in PUBLISHED[task_type].items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def lora_config(self) -> LoraConfig:
        """The plain PEFT configuration of the trained adapter, with nothing of ours in it."""
        settings = {f.name: getattr(self, f.name) for f in fields(LoraConfig) if f.init}
        # PEFT writes into these where it finds a mixture of experts.
        settings |= {name: dict(settings[name]) for name in ("rank_pattern", "alpha_pattern")}
        return LoraConfig(**{**settings, **METHODS[self.method]})

    def settings(self) -> dict[str, Any]:
        """Our own fields alone, as JSON types: what `balora_config.json` holds."""
        inherited = {f.name for f in fields(LoraConfig)}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in inherited}
