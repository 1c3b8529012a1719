"""Training params small enough for tests; each test changes what it is about."""

from pipeline.params import TrainSection

SETTINGS = TrainSection(
    steps=6, batch=3, accumulation=1, optimizer="adamw", learning_rate=1e-2, b_rate=1.0, schedule="constant", warmup=0,
    weight_decay=0.01, max_grad_norm=1.0, min_snr_gamma=None, noise_offset=0.0, caption_dropout=0.0, flip=False, rank=2,
    alpha=2.0, rank_stabilised=False, targets="attention", init="kaiming", gradient_checkpointing=False,
    validate_every=None, patience=None, target_loss=None, seed=0,
)  # fmt: skip
