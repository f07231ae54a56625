"""The HTTP face of the broker: routes, endpoints, authentication and problem responses."""
