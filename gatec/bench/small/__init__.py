"""A small language model of bytes, trained here in minutes on text that ships with Python."""
