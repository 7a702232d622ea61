"""`find_adapter`: the whole thing in one call, in memory."""

from glora_search.find.adapter import find_adapter
from glora_search.find.found import FoundAdapter

__all__ = ["FoundAdapter", "find_adapter"]
