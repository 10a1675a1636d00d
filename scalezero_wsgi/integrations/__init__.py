"""What the middleware needs to know of a server or a framework; a module is imported by who uses it."""
