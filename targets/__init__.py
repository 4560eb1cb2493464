"""Targets: a table of them, and a folder for each with the same functions (``target.Doors``)."""
