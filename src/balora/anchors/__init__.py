"""Self-anchors: consistency with the pretrained model on text that it generated itself, beside the task's batches.

    model = get_balora_model(model, BALoraConfig(method="lora+anchors"), tokenizer=tokenizer)

samples them before the adapter is added, and keeps them in balora's cache. To sample others:

    anchors = sample_anchors(model, tokenizer, count=1024, length=64)
    model = get_balora_model(model, BALoraConfig(method="lora+anchors", anchor_weight=0.25), anchors=anchors)

Unprompted samples of a model represent what it knows, so its pretraining data are not needed. `texts_as_anchors` takes
your own texts instead. `balora.model.anchor_term` computes the term.
"""

from balora.anchors.sampling import COUNT, LENGTH, Anchors, cached_anchors, sample_anchors, texts_as_anchors

__all__ = ["COUNT", "LENGTH", "Anchors", "cached_anchors", "sample_anchors", "texts_as_anchors"]
