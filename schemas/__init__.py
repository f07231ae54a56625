"""The Pydantic models that broker and worker both speak; imports only Pydantic and the standard
library.
"""
