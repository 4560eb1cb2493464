"""Number formats (how a weight may be stored) and solvers (how the stored values are chosen)."""
