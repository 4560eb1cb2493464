"""AWQ and SmoothQuant: scales moved between weights before they are rounded."""
