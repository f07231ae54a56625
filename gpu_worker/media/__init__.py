"""Files and frames: probe, decode, encode."""
