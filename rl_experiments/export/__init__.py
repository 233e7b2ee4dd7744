"""Write a checkpoint as a plain transformers model with a card, into a folder, S3 or the hub."""
