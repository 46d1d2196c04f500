"""Published methods as data: one TOML file each, which names general parts and their options, and the reader."""
