"""Inputs on disk, for tests that read them."""
