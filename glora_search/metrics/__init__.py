"""Metrics that look at the answers of a language model: generated text, or the likeliest of several choices."""

from glora_search.metrics.base import Metric, Score
from glora_search.metrics.generated import GeneratedMetric, generate
from glora_search.metrics.making import make_metrics
from glora_search.metrics.panel import Panel, sample_answers

__all__ = ["GeneratedMetric", "Metric", "Panel", "Score", "generate", "make_metrics", "sample_answers"]
