"""The core in motion: submit, observe, decide, apply."""
