"""The words: what a paper *says*, as frozen, validated values. Nothing here imports Keras or TensorFlow."""
