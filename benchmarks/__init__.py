"""Measurements that take long or need a GPU; README.md has their commands and figures."""
