"""Settings as frozen, validated values. Nothing here imports Keras or TensorFlow."""
