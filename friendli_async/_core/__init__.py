"""The machine: it knows HTTP and server-sent events, and no endpoint."""
