"""The settings of a run: SFTConfig from the spec, and what `profile: auto` chooses for the device."""
