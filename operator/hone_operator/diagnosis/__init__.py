"""Why a pod, claim or child is not as it should be, in the reasons of the catalogue."""
