"""A seeded generator of tool-calling tasks."""
