"""The cold path, from a request for a function at zero to a replica that can serve it, without HTTP."""
