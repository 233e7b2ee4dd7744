"""What a person sees in the terminal: progress, tables, and how Ctrl-C is recognised."""
