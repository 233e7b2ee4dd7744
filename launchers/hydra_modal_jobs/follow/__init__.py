"""What the user sees while jobs run, and what Ctrl-C does."""
