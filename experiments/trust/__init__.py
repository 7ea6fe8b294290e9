"""Kills and flipped bits, drawn from a seed, against runs of every stage kind (docs/trust.md)."""
