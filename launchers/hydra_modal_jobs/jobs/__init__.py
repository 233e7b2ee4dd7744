"""A job: composed from the configuration, written as plain data, and its result."""
