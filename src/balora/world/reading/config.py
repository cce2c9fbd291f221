"""The settings of a reading world."""

from dataclasses import dataclass

from balora.errors import BALoraError
from balora.world.config import check_limits, digest

#: Increase it whenever the same settings would give other rows or another model.
_VERSION = 6
#: Settings of the fine-tuning questions, which do not affect the pretrained model.
_TASK_FIELDS = ("train_rows", "eval_rows", "comparison_share")

_LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "names": (6, 512),
    "chains": (2, 6),
    "comparison_share": (0, 1),
    "train_rows": (1, 1_000_000),
    "eval_rows": (1, 100_000),
    "hidden_size": (8, 1024),
    "num_layers": (3, 24),
    "num_decoder_layers": (1, 24),
    "num_heads": (4, 32),
    "pretrain_steps": (1, 100_000),
    "pretrain_batch_size": (1, 1024),
    "pretrain_learning_rate": (1e-6, 1),
}


@dataclass(frozen=True)
class ReadingConfig:
    """The contents of a reading world and the pretraining of its model.

    Attributes:
        seed: Seed of every stream: paragraphs, questions, model initialisation.
        names: Number of films, of directors, of towns and of countries.
        chains: Films per context, each with its director, the town where the director was born, and its country. One
            of them answers a bridge question, two answer a comparison; the others distract.
        comparison_share: Share of comparison questions; about a fifth in HotpotQA.
        train_rows: Questions to fine-tune on.
        eval_rows: Held-out questions: other contexts with the same names.
        hidden_size: Width of the T5; even, since each head has half of it.
        num_layers: Depth of its encoder; reading needs three.
        num_decoder_layers: Depth of its decoder.
        num_heads: Attention heads; reading needs four.
        pretrain_steps: Optimizer steps of pretraining, on contexts that never repeat.
        pretrain_batch_size: Questions per step.
        pretrain_learning_rate: Peak learning rate of a weight of size 1 (see `make_optimizer`).

    Raises:
        BALoraError: If a setting is out of its limits.
    """

    seed: int = 0
    names: int = 40
    chains: int = 3
    comparison_share: float = 0.4
    train_rows: int = 4000
    eval_rows: int = 600
    hidden_size: int = 128
    num_layers: int = 4
    num_decoder_layers: int = 2
    num_heads: int = 4
    pretrain_steps: int = 2000
    pretrain_batch_size: int = 96
    pretrain_learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        check_limits(self, _LIMITS)
        if self.hidden_size % 2:
            raise BALoraError(f"hidden_size must be even, as each head has half of it, not {self.hidden_size}")

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that name the world; equal settings have equal fingerprints on any machine."""
        return digest(self, _VERSION)

    @property
    def pretraining_fingerprint(self) -> str:
        """The fingerprint of the pretrained model alone."""
        return digest(self, _VERSION, ignored=_TASK_FIELDS)
