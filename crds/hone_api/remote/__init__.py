"""Models, datasets and artifacts in object stores, registries and behind HTTPS: their fields and failures."""
