"""What the command ``scalezero-wsgi`` does, a module for each word."""
