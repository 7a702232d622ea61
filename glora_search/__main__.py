"""``python -m glora_search``."""

from glora_search.cli import main

main()
