"""AWQ and SmoothQuant: moving scales between weights before they are rounded."""
