"""What passes between a step and its worker: requests and results, progress, leases of devices."""
