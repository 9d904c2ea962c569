"""Survival under attack, and the record of it."""
