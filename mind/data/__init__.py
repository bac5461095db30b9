"""Questions and their rationales: read from files, the Hub and tables, and written as records."""
