"""Self-anchors: consistency with the pretrained model on text that it wrote itself, beside the task's own batches.

    anchors = sample_anchors(model, tokenizer, count=512, length=128)   # before the adapter is put on
    model = get_balora_model(model, BALoraConfig(anchor_weight=0.25))
    model.set_anchors(anchors)

What a model writes unasked is a sample of what it knows, so nothing of its pretraining data is needed.
`texts_as_anchors` takes texts of one's own instead. `sampling` makes them, `term` is what they add to the objective.
"""

from balora.anchors.sampling import Anchors, sample_anchors, texts_as_anchors

__all__ = ["Anchors", "sample_anchors", "texts_as_anchors"]
