"""Settings: pydantic models of all that users can set in a file, a flag or a `WAN_*` variable."""
