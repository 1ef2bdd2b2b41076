"""The HTTP server: routes, middleware, pages, metrics and the life of the process."""
