"""The operator's Kubernetes client: requests, watches, the cache, the work queue and leader election."""
