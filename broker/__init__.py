"""The HTTP job broker: accepts, commits, dispatches and reconciles export jobs."""
