"""keras_rcl: robust contrastive learning in Keras 3 on TensorFlow."""
