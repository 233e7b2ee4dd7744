"""A test of tool calls: dummy tools that are asked for by name."""

from environments.tool_test.env import ToolTest

__all__ = ["ToolTest"]
