"""What a process needs: TensorFlow started quietly, signals, workers, child processes, progress."""
