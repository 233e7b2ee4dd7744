"""Episodes: an environment played by a policy, turn by turn, and the record of it."""
