"""A run: the stages of a recipe in a folder, and what can be read there."""
