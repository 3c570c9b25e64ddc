"""Dice and HD95, and pairs of label maps."""
