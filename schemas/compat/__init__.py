"""Other spellings of what clients send, and older clients' answers."""
