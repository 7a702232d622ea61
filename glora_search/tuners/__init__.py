"""PEFT methods of this package."""
