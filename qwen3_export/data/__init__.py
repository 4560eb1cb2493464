"""Files that ship with the package: the demo model and the evaluation prompts."""
