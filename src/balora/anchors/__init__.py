"""Self-anchors: consistency with the pretrained model on text that it generated itself, beside the task's batches.

    anchors = sample_anchors(model, tokenizer, count=512, length=128)   # before the adapter is added
    model = get_balora_model(model, BALoraConfig(anchor_weight=0.25))
    model.set_anchors(anchors)

Unprompted samples of a model represent what it knows, so its pretraining data are not needed. `texts_as_anchors` takes
your own texts instead. `balora.model.anchor_term` computes the term.
"""

from balora.anchors.sampling import Anchors, sample_anchors, texts_as_anchors

__all__ = ["Anchors", "sample_anchors", "texts_as_anchors"]
