"""What both kinds share in a reconcile: the plan, its execution, conditions, ownership and failures."""
