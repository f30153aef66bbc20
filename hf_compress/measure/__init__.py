"""Measurements and their records."""
