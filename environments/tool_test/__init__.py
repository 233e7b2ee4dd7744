"""Calls of dummy tools, asked for by name."""

from environments.tool_test.env import ToolTest

__all__ = ["ToolTest"]
