"""What a step and its worker exchange: requests and results, progress, leases of devices."""
