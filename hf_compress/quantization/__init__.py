"""Storing weights in few bits."""
