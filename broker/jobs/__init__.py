"""The rules of jobs, without I/O."""
