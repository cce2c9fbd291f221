"""The smallest reading world that can be built."""

from balora.world.reading import ReadingConfig

TINY = ReadingConfig(
    names=8,
    chains=2,
    train_rows=60,
    eval_rows=30,
    hidden_size=16,
    num_layers=3,
    num_decoder_layers=1,
    num_heads=4,
    pretrain_steps=3,
    pretrain_batch_size=4,
)
