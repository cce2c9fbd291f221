"""The knobs of a reading world."""

from dataclasses import dataclass

from balora.errors import BALoraError
from balora.world.config import check_knobs, digest

#: Raised whenever the same knobs would yield other rows or another model.
_VERSION = 6
#: Knobs that shape the questions to be learned, and not the pretrained model.
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
    """What there is to read and how the model that reads is pretrained.

    Attributes:
        seed: Seed of every stream: paragraphs, questions, model initialisation.
        names: Number of films, of directors, of towns and of countries that paragraphs are made of.
        chains: Films that a context tells of, each with its director, the town where that was born, and its country:
            one of them answers a bridge question, two a comparison, the rest distract.
        comparison_share: Share of comparison questions; HotpotQA has about a fifth.
        train_rows: Questions to fine-tune on.
        eval_rows: Held-out questions: other contexts of the same names.
        hidden_size: Width of the T5; even, as each head has half of it.
        num_layers: Depth of its encoder; reading takes three.
        num_decoder_layers: Depth of its decoder.
        num_heads: Its attention heads; reading takes four.
        pretrain_steps: Optimizer steps of pretraining, on contexts that never repeat.
        pretrain_batch_size: Questions per step.
        pretrain_learning_rate: Peak of the schedule, of a weight of size 1 (`make_optimizer`).

    Raises:
        BALoraError: If a knob is out of its limits.
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
        check_knobs(self, _LIMITS)
        if self.hidden_size % 2:
            raise BALoraError(f"hidden_size must be even, as each head has half of it, not {self.hidden_size}")

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that name the world: equal knobs, equal fingerprint, on any machine."""
        return digest(self, _VERSION)

    @property
    def pretraining_fingerprint(self) -> str:
        """As `fingerprint`, over what shapes the pretrained model alone."""
        return digest(self, _VERSION, besides=_TASK_FIELDS)
