"""Settings: pydantic models of everything that users can set, by file, flag or `WAN_*` variable."""
