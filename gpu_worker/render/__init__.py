"""A composition becomes a file."""
