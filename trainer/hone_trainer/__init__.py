"""The program in the training pod. Never imports kubernetes."""
