"""Models on disk: export, safe loading, classifiers, encoders, ONNX and VNN-LIB."""
