"""The Kubernetes operator: observe an object and its children, plan, and apply the plan. It never imports torch."""
