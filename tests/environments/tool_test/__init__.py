"""Tests of the tool test."""
