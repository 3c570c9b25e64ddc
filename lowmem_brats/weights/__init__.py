"""Weights files and sets; checkpoints."""
