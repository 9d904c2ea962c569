"""The type of what objectives take and give."""

from typing import Any

Tensor = Any
"""A NumPy array or a tensor of the backend of Keras, concrete or symbolic."""
