"""Files: written whole, read by position, and never outside their folder."""
