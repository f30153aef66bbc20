"""Zeroing weights and units gradually."""
