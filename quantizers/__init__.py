"""Number formats (which values a weight may take) and solvers (which of them it gets)."""
