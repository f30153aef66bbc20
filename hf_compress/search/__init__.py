"""Answers instead of switches: sweeps over recipes, and models that fit a budget."""
