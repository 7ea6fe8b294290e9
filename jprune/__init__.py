"""Pruning of convolutional networks in JAX."""
