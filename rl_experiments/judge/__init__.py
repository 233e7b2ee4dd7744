"""An LLM as judge: it compares the attempts of a group, and its scores become rewards (RULER)."""
