"""Measurements and their records. Not called `measure`: importing it would hide the function of that name."""
