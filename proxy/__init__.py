"""Postern: an authenticating reverse proxy."""
