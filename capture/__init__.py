"""Placeholder of the room."""
