"""Target emitters, one folder a target, each with the same doors: emit, read, run."""
