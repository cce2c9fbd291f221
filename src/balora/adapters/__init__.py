"""Low-rank adapters through PEFT: how they start, how the pretrained model is seen through them, how they are kept."""
