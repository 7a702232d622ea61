"""The command line: from a recipe to a merged model, at once or stage by stage."""

# Each of these modules adds its commands to the app, in the order in which the help lists them.
from glora_search.cli import plan, run, spaces, start, use, watch
from glora_search.cli.app import app, main

__all__ = ["app", "main", "plan", "run", "spaces", "start", "use", "watch"]
