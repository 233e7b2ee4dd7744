"""Tests of BFCL, single turn."""
