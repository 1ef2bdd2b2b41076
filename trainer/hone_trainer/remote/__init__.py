"""Sources in object stores and behind HTTPS: list, download and verify them into the cache."""
