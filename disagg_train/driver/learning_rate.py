"""The learning rate of a step: a linear warm-up, then half a cosine."""

import math

from disagg_train.config.job import TrainConfig


def learning_rate(train: TrainConfig, step: int) -> float:
    """Return the learning rate of ``step``, counted from 0."""
    optimizer = train.optimizer
    if step < optimizer.warmup_steps:
        return optimizer.lr * (step + 1) / optimizer.warmup_steps
    decay_steps = max(train.steps - optimizer.warmup_steps - 1, 1)
    progress = min((step - optimizer.warmup_steps) / decay_steps, 1.0)
    lowest = optimizer.lr * optimizer.min_lr_fraction
    return lowest + (optimizer.lr - lowest) * 0.5 * (1.0 + math.cos(math.pi * progress))
