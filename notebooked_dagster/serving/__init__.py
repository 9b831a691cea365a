"""Serve a trained model: the server, the supervisor, traffic between versions.

``control.EndpointControl`` is the way in; ``server.py`` runs a model, ``supervisor`` keeps it running.
"""
