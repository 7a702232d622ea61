"""Adapter folders: writing a subnet, its card, loading it again, merging it."""
