"""What generates replies: transformers, vLLM here or as a server, or a model behind an API."""
