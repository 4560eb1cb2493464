"""Files: written whole or not at all, read by position, never outside their folder and never over the user's own."""
