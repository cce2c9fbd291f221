"""A classifier base's own head: whether it fits the classes of the rows, by their names."""

import re
import warnings
from dataclasses import replace

import torch
from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedModel

from balora.errors import BALoraError
from balora.study.task_datasets import Datasets

#: Names that Transformers gives to classes without names.
UNNAMED = re.compile(r"LABEL_\d+|\d+")


def order_of_base(config: PreTrainedConfig, label_names: list[str]) -> list[str]:
    """Return the rows' class names in the order of the base's trained head; as they are if the two do not match.

    Names that differ only in case or spaces match, with a warning.
    """
    own = _names(config)
    by_name = {_plain(name): name for name in label_names}
    if own is None or set(map(_plain, own)) != set(by_name) or not len(own) == len(by_name) == len(label_names):
        return label_names
    ordered = [by_name[_plain(name)] for name in own]
    if ordered != own:
        warnings.warn(
            f"balora: the rows' classes {', '.join(ordered)} are taken for the base's {', '.join(own)}, in this order"
        )
    return ordered


def in_order_of_base(datasets: Datasets, config: PreTrainedConfig, *, explicit: bool) -> Datasets:
    """Return the datasets with their classes numbered as `order_of_base` orders them.

    Args:
        datasets: The recipe's datasets.
        config: The base's configuration.
        explicit: Whether the recipe gives the order of the classes.

    Raises:
        BALoraError: If the recipe gives the head's classes in another order.
    """
    if not datasets.label_names:
        return datasets
    ordered = order_of_base(config, datasets.label_names)
    if ordered == datasets.label_names:
        return datasets
    if explicit:
        raise BALoraError(
            f"label_names: {', '.join(datasets.label_names)} are the classes of the base's trained head in another "
            f"order; use its order, {', '.join(ordered)}, or leave label_names out"
        )
    ids = [ordered.index(name) for name in datasets.label_names]

    def renumbered(rows: Dataset | None) -> Dataset | None:
        return None if rows is None else rows.map(lambda row: {"label": ids[row["label"]]})

    return replace(
        datasets,
        train=renumbered(datasets.train),
        validation=renumbered(datasets.validation),
        others={name: renumbered(rows) for name, rows in datasets.others.items()},
        label_names=ordered,
    )


def needs_new_head(config: PreTrainedConfig, label_names: list[str]) -> str | None:
    """Return why a trained head does not fit the rows' classes, `None` if it fits or the base has none."""
    if not any("ForSequenceClassification" in name for name in config.architectures or []):
        return None
    own, count = _names(config), len(label_names) or 1
    if config.num_labels != count:
        return f"{config.num_labels} outputs and the rows need {count}"
    if own is None or all(map(UNNAMED.fullmatch, label_names)):  # numbered classes are the base's by their numbers
        return None
    if set(map(_plain, own)) != set(map(_plain, label_names)):
        return f"the classes {', '.join(own)} and the rows have {', '.join(label_names)}"
    return None


@torch.no_grad()
def renew_head(model: PreTrainedModel) -> None:
    """Draw a classifier's modules outside the backbone anew, as for a base without a head."""
    backbone = getattr(model, model.base_model_prefix)
    for child in model.children():
        if child is not backbone:
            for module in child.modules():
                for parameter in module.parameters(recurse=False):
                    parameter._is_hf_initialized = False
                model._init_weights(module)


def _names(config: PreTrainedConfig) -> list[str] | None:
    """Return the names of a trained head's classes, `None` without a head or names."""
    if not any("ForSequenceClassification" in name for name in config.architectures or []):
        return None
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    return None if all(map(UNNAMED.fullmatch, names)) else names


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
