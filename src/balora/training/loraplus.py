"""LoRA+ optimizer: B has a higher learning rate than A."""

from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from torch.optim import Optimizer
from transformers import Trainer, TrainingArguments

from balora.errors import BALoraError


def loraplus_optimizer(model: PeftModel, args: TrainingArguments, ratio: float = 16.0) -> Optimizer:
    """Build the optimizer of the arguments, with B's learning rate `ratio` times A's (Hayou et al. 2024).

    The parameter groups are PEFT's: as in the authors' code, biases and norms trained beside the adapter have B's
    rate, a head's matrix has A's, and `weight_decay` excludes biases and norms. Schedulers scale all rates alike.

    Set it on a trainer before training: `trainer.optimizer = loraplus_optimizer(trainer.model, trainer.args)`.

    Args:
        model: Any PEFT model, on its device.
        args: `learning_rate` is A's rate; `optim` names the optimizer.
        ratio: λ, the ratio of B's rate to A's.

    Raises:
        BALoraError: If the ratio is below 1.
    """
    if not 1 <= ratio < float("inf"):
        raise BALoraError(f"loraplus_lr_ratio: {ratio} is out of range; use 1 or more (16 in the paper)")
    optimizer_cls, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    settings |= {"loraplus_lr_ratio": ratio, "loraplus_weight_decay": args.weight_decay}
    return create_loraplus_optimizer(model, optimizer_cls, **settings)
