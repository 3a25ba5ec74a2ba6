"""Releases of models in their makers' own files: consolidated files and params.json."""
