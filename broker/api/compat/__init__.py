"""The routes of older clients."""
