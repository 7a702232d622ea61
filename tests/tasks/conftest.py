"""Tiny models and data for every task."""

from tiny_models import make, recipe, task, tiny

__all__ = ["make", "recipe", "task", "tiny"]
