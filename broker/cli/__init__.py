"""The `reelbroker` command."""
