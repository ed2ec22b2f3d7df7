"""Where the objects are kept: one interface, SQLite for now."""
