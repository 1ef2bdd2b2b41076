"""The controller: observes, plans, applies. Never imports torch."""
