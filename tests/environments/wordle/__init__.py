"""Tests of Wordle."""
