"""HTTP: thin handlers over services. Nothing here decides; nothing here knows SQL."""
