"""Measures of trained networks, in NumPy."""
