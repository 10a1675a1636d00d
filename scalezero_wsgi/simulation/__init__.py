"""What another ``idle_after`` would have done with the requests of a log."""
