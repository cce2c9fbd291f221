"""`BALoraConfig`: PEFT's `LoraConfig` plus the method that starts the adapter and the regularizers on its outputs."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from peft import LoraConfig, TaskType
from transformers import BitsAndBytesConfig

from balora.errors import BALoraError

#: What each method sets in PEFT's `LoraConfig`. Adapters of `RESIDUAL` methods start from part of the weight, which
#: is then taken out of the base: the base alone is no longer the pretrained model. Those `FROM_DATA` need batches to
#: start from.
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {},
    "olora": {},
    "milora": {},
    "lora-fa": {},
    "lora-ga": {},
    "corda": {},
    "selora": {},
}
RESIDUAL = frozenset({"pissa", "olora", "milora", "lora-ga", "corda"})
FROM_DATA = frozenset({"lora-ga", "corda"})
#: The method whose weights depend on each row's sentence vector.
SELORA = "selora"

Schedule = Literal["constant", "cosine", "two_phase"]

#: Settings printed in the BA-LoRA paper: generation from its section 4.1 (Llama-2-7B), classification from GLUE.
_GENERATION: dict[str, Any] = {
    "consistency_weight": 0.025,
    "diversity_weight": 0.005,
    "spectral_weight": 0.005,
    "spectral_k": 10,
    "consistency_schedule": "cosine",
    "diversity_schedule": "two_phase",
    "spectral_schedule": "two_phase",
}
PUBLISHED: dict[str, dict[str, Any]] = {
    TaskType.CAUSAL_LM: _GENERATION,
    TaskType.SEQ_2_SEQ_LM: _GENERATION,
    TaskType.SEQ_CLS: {
        "consistency_weight": 0.15,
        "diversity_weight": 0.03,
        "spectral_weight": 0.03,
        "spectral_k": 5,
        "diversity_loss": "covariance",
        "consistency_schedule": "constant",
        "diversity_schedule": "constant",
        "spectral_schedule": "constant",
    },
}


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
            projection unless `target_modules` says otherwise (`balora.adapters.semantic`).
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
        if self.method not in METHODS:
            raise BALoraError(f"method: unknown {self.method!r}; there are {', '.join(METHODS)}")
        if not isinstance(self.init_lora_weights, bool):
            raise BALoraError(
                f"init_lora_weights: {self.init_lora_weights!r} is set by `method`; use one of "
                f"{', '.join(METHODS)} there, or leave it out"
            )
        if self.corda_method not in ("ipm", "kpm"):
            raise BALoraError(f"corda_method: unknown {self.corda_method!r}; use 'ipm' or 'kpm'")
        if self.bias != "none":
            raise BALoraError(
                f"bias: {self.bias!r} trains the base's own biases, after which the pretrained model can no longer be "
                "seen through the adapter; use 'none', or lora_bias=True for biases inside the adapter"
            )
        for name in ("consistency_weight", "diversity_weight", "spectral_weight", "semantic_weight"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise BALoraError(f"{name}: {value} is not a weight; use 0 (off) or a positive number")
        for name in ("top_k", "spectral_k", "r", "sentence_dim", "gate_hidden"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BALoraError(f"{name}: {value} is too small; use at least 1")
        if self.pissa_niter is not None and self.pissa_niter < 0:
            raise BALoraError(f"pissa_niter: {self.pissa_niter} is negative; use null for the exact SVD, or 0, 1, 2 …")
        if not self.temperature > 0:
            raise BALoraError(f"temperature: {self.temperature} is not positive")
        if not self.teacher_cache_mb >= 0:
            raise BALoraError(f"teacher_cache_mb: {self.teacher_cache_mb} is negative; use 0 for no cache")
        if not 0 < self.sample_rate <= 1:
            raise BALoraError(f"sample_rate: {self.sample_rate} is not a share; use a number above 0 and at most 1")
        if self.quantization_config is not None:
            self.quantization_config = four_bit_settings(self.quantization_config)
        if self.method == SELORA and self.sentence_dim is None:
            raise BALoraError(
                "sentence_dim: selora needs the length of the sentence vectors that it will be given; "
                "all-MiniLM-L6-v2's is 384"
            )
        if self.gate not in ("shared", "per_layer"):
            raise BALoraError(f"gate: unknown {self.gate!r}; use 'shared' or 'per_layer'")
        if self.semantic_weight and self.method != SELORA:
            raise BALoraError(f"semantic_weight: {self.method} has no sentence vectors to weigh; use method='selora'")
        if self.semantic_min_similarity is not None and not -1 <= self.semantic_min_similarity <= 1:
            raise BALoraError(f"semantic_min_similarity: {self.semantic_min_similarity} is no cosine; use −1 to 1")
        if self.semantic_reduction not in ("mean", "sum"):
            raise BALoraError(f"semantic_reduction: unknown {self.semantic_reduction!r}; use 'mean' or 'sum'")
        if self.consistency_direction not in ("forward", "reverse"):
            raise BALoraError(f"consistency_direction: {self.consistency_direction!r}; use 'forward' or 'reverse'")
        if self.diversity_loss not in (None, "covariance", "entropy"):
            raise BALoraError(f"diversity_loss: unknown {self.diversity_loss!r}; use covariance or entropy")
        for name in ("consistency_schedule", "diversity_schedule", "spectral_schedule"):
            if getattr(self, name) not in (None, "constant", "cosine", "two_phase"):
                raise BALoraError(f"{name}: unknown {getattr(self, name)!r}; use constant, cosine or two_phase")

    @property
    def residual(self) -> bool:
        """Whether the base weight loses what the adapter starts from."""
        return self.method in RESIDUAL

    def resolve(self, task_type: str) -> None:
        """Fill fields left at `None` with the published value for the task, in place.

        Raises:
            BALoraError: If the task has no regularizers defined.
        """
        if task_type not in PUBLISHED:
            raise BALoraError(f"task_type: {task_type!r} is not supported; there are {', '.join(map(str, PUBLISHED))}")
        if task_type != TaskType.SEQ_CLS and self.diversity_loss == "covariance":
            raise BALoraError(
                "diversity_loss: a covariance of next-token logits would be vocabulary × vocabulary; use 'entropy'"
            )
        if task_type == TaskType.SEQ_CLS and self.sample_rate != 1:
            raise BALoraError(
                f"sample_rate: {self.sample_rate} is for generation; in classification the teacher sees each example "
                "once anyway (teacher_cache_mb)"
            )
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


def four_bit_settings(config: BitsAndBytesConfig | dict[str, Any]) -> dict[str, Any]:
    """All settings of a `BitsAndBytesConfig`, as JSON types.

    Raises:
        BALoraError: If one is unknown or has a wrong value, or they ask for other than 4 bits.
    """
    known = [name for name in BitsAndBytesConfig().to_dict() if not name.startswith("_")]
    if isinstance(config, dict):
        unknown = sorted(set(config) - set(known))
        if unknown:
            raise BALoraError(f"quantization_config: unknown {unknown[0]!r}; there are {', '.join(known)}")
        try:
            config = BitsAndBytesConfig(**config)
        except (TypeError, ValueError, AttributeError) as error:
            raise BALoraError(f"quantization_config: {error}") from error
    if config.quantization_method() not in ("nf4", "fp4"):
        raise BALoraError(
            "quantization_config: only 4 bits are supported; use load_in_4bit=True and bnb_4bit_quant_type 'nf4' or "
            "'fp4'"
        )
    return {name: value for name, value in config.to_dict().items() if name in known}
