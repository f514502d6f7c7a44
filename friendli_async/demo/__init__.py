"""`make demo`: a real model on this machine streams through the client."""
