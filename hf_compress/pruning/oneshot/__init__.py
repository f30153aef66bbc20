"""Pruning without training, from statistics of some batches."""
