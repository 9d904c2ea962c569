"""Data: where images come from, how they are split and augmented, and the batches of views that a phase asks for."""
