"""The commands of sgctl, each imported when it runs."""
