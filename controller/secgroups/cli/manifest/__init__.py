"""Files that say what a project shall be: read, compared with what is, applied, written."""
