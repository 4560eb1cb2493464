"""Number formats: the values that a weight can be stored as. Solvers: how the stored values are chosen."""
