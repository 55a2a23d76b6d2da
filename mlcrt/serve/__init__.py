"""Serving many clients: the scheduler that shares one engine, and what stands on top of it."""
