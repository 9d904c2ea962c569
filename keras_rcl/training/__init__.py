"""The phases' engine: one trainer, views before its step, weighed terms inside it."""
