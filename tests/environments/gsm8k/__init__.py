"""Tests of GSM8K."""
