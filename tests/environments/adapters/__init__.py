"""Tests of the adapters of other libraries."""
