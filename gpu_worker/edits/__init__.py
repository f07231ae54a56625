"""One edit a module: what happens to frames and time between decode and encode."""
