"""What runs in the training pod. Never imports kubernetes."""
