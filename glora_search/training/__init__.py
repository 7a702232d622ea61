"""Training with transformers' Trainer: rates by kind of path, the loop, the baselines."""
