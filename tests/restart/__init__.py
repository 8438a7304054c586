"""Restarts and upgrades under load, through nginx: `python -m tests.restart` for minutes, the tests for seconds."""
