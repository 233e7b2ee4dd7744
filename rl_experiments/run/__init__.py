"""One execution of a job as a folder: its settings, what made it, its records, its resume."""
