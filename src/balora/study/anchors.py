"""The anchors of a study: texts sampled once from the pretrained model and cached, or the user's texts."""

from balora.anchors import Anchors, sample_anchors, texts_as_anchors
from balora.study.model_and_data import ModelAndData
from balora.utils.distributed import broadcast_from_main
from balora.utils.files import cache_folder


def anchors_of(prepared: ModelAndData) -> Anchors:
    """Return the anchors, which are the same for every method and seed.

    Raises:
        BALoraError: If a setting does not fit the model.
    """
    recipe, tokenizer = prepared.recipe, prepared.tokenizer
    if prepared.anchors:
        return texts_as_anchors(prepared.anchors, tokenizer, length=recipe.anchor_length)
    return broadcast_from_main(
        lambda: sample_anchors(
            prepared.load_model(on_device=True),
            tokenizer,
            count=recipe.anchor_samples,
            length=recipe.anchor_length,
            cache_dir=cache_folder() / "anchors",
        )
    )
