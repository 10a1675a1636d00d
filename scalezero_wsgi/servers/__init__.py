"""The WSGI server: its capacity, its heartbeat, its stop, and whether a client has disconnected."""
