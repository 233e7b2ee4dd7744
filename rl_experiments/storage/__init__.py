"""Files that are never half-written, and objects in a folder or on an S3 server."""
