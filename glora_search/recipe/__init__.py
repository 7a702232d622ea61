"""A recipe: an experiment as one checked YAML file."""
