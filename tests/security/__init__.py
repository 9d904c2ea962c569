"""Attempts to do harm with a model file: what each does is watched from a child process."""
