"""The WSGI server: its capacity and slots, its heartbeat, its stop, and whether a client has disconnected."""
