"""Reads questions and their rationales from files, tables and the Hub, and writes them as records."""
