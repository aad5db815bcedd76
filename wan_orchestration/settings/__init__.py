"""Settings: pydantic models of what users may set, and the `WAN_*` environment."""
