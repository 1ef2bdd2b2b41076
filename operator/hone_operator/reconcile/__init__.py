"""The parts of a reconcile that both kinds share: the plan, its execution, conditions, ownership and failures."""
