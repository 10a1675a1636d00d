"""All that reads ``environ`` or writes an answer."""
