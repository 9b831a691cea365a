"""Serve a trained model: the server, the supervisor, traffic between versions."""
