"""LoRA+: the optimizer in which B learns faster than A."""

from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from torch.optim import Optimizer
from transformers import Trainer, TrainingArguments

from balora.errors import BALoraError


def loraplus_optimizer(model: PeftModel, args: TrainingArguments, ratio: float = 16.0) -> Optimizer:
    """The optimizer that the arguments name, with B's learning rate `ratio` times A's (Hayou et al. 2024).

    It is PEFT's, groups included: as in the authors' code a bias or a norm trained beside the adapter has B's rate, a
    head's matrix A's, and `weight_decay` spares biases and norms. A scheduler multiplies every rate alike.

    Give it to a trainer that has placed the model and not yet trained: `trainer.optimizer = loraplus_optimizer(
    trainer.model, trainer.args)`.

    Args:
        model: Any PEFT model, on its device.
        args: `learning_rate` is A's; `optim` and its settings are the optimizer's.
        ratio: λ, B's rate over A's.

    Raises:
        BALoraError: If the ratio is below 1.
    """
    if not 1 <= ratio < float("inf"):
        raise BALoraError(f"loraplus_lr_ratio: {ratio} makes B no faster than A; use 1 or more (16 in the paper)")
    optimizer_cls, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    settings |= {"loraplus_lr_ratio": ratio, "loraplus_weight_decay": args.weight_decay}
    return create_loraplus_optimizer(model, optimizer_cls, **settings)
