"""The papers' equations as plain NumPy loops in float64: slow, obvious, and written apart from the package."""
