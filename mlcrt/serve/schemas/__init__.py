"""Requests as pydantic models, and answers as far as the OpenAPI document describes them."""
