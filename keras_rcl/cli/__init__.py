"""The command line: one module per command. TensorFlow is imported when a command runs, not for its help."""
