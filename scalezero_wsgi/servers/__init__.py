"""The server around us: its capacity, its heartbeat, its stop, and whether a client has disconnected."""
