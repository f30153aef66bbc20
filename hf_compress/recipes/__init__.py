"""Whole jobs in one YAML file."""
